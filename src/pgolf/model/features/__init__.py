"""The features of the model, a file each; ``model/section.py`` lists them."""
