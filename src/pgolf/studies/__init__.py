"""The studies that come with pgolf, one TOML file each."""
