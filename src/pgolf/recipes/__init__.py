"""The recipes that come with pgolf, one TOML file each."""
