"""pgolf: byte-budgeted language models, from text to a score in bits per byte."""

__version__ = "0.1.0"
