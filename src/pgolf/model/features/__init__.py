"""The features of the model, a file each; ``model/parts.py`` lists them. Keys: ``model/section.py``."""
