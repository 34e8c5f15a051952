"""What stands in a single file for parts of the package that it does not need as they are.

The recipe is a constant there; code bytes are those of the file itself; the GPU's kernels are a text, which
is run where there is a compiler for them. ``bundle.py`` puts these definitions in the place of the package's
and fills in ``RECIPE`` and ``KERNELS``.
"""

from __future__ import annotations

import linecache
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pgolf.errors import PgolfError
from pgolf.kernels.available import has_triton
from pgolf.recipe.recipe import Recipe

RECIPE = Recipe()
"""The recipe of this file."""
KERNELS = ""
"""The module ``kernels/cross_entropy.py`` as it is: its decorators read names, types and text of what they
decorate.
"""


def _run(text: str, name: str) -> Any:
    module = types.ModuleType(name)
    # Triton asks for the text of a kernel when it compiles it.
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    # Not exec: in a module that calls it the minifier keeps every name.
    types.FunctionType(compile(text, name, "exec"), module.__dict__)()
    return module


# Here and not when it is first called: then compiled code calls it.
_KERNEL_MODULE = _run(KERNELS, "kernels.py") if has_triton() else None


def softcap_cross_entropy(z: Tensor, targets: Tensor, softcap: float) -> Any:
    """As in ``kernels/cross_entropy.py``; only where there is Triton."""
    assert _KERNEL_MODULE is not None
    return _KERNEL_MODULE.softcap_cross_entropy(z, targets, softcap)


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


def nothing(*_: Any) -> Any:
    """The script writes no checkpoints, reads none and tells no tracker, nor does it read any tokenizer but
    SentencePiece models; nor has it what is never called.
    """


def code_bytes(memory: bool = False) -> int:
    """Bytes of code that count: the packed file, also where its readable form runs beside it."""
    own = Path(__file__)
    packed = own.with_name("train_gpt.py")
    return (packed if packed.is_file() else own).stat().st_size
