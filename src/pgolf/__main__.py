"""``python -m pgolf``."""

from pgolf.cli import main

main()
