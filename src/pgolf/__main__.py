"""``python -m pgolf``."""

from pgolf.cli.main import main

main()
