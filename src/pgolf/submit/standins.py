"""What stands in a single file for parts of the package that it does not need as they are.

The recipe is a constant there; code bytes are those of the file itself.
``bundle.py`` puts these definitions in the place of the package's and fills in ``RECIPE``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pgolf.errors import PgolfError
from pgolf.recipe import Recipe

RECIPE = Recipe()
"""The recipe of this file."""


def with_seed(recipe: Any, seed: int) -> Any:
    """The recipe with another seed of the initial weights."""
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": seed})})


def recipe_from_tree(tree: Mapping[str, Any], where: str) -> Recipe:
    """The recipe that an artifact names: this file's, with any seed.

    Raises:
        PgolfError: it is another one.
    """
    seed = tree.get("train", {}).get("seed", 1337)
    recipe: Recipe = with_seed(RECIPE, seed)
    if recipe.model_dump(mode="json", exclude_defaults=True) != tree:
        raise PgolfError(f"{where}: was made by another recipe than this file's")
    return recipe


def code_bytes() -> int:
    """Bytes of code that count: the packed file, also where its readable form runs beside it."""
    own = Path(__file__)
    packed = own.with_name("train_gpt.py")
    return (packed if packed.is_file() else own).stat().st_size
