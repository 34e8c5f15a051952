"""pgolf: byte-budgeted language models, from text to a score in bits per byte.

``load``, ``train``, ``pack``, ``evaluate`` and ``load_recipe`` are the library; docs/api.md shows them.
Importing this is quick: torch and the rest are loaded by the first of them that is called.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Two functions share their names with packages. A package's name is bound when it is first imported; so that
# comes first, and the functions keep the names whatever is imported later.
import pgolf.evaluate as _evaluate  # noqa: F401
import pgolf.train as _train  # noqa: F401
from pgolf.api import evaluate, load, load_recipe, pack, train
from pgolf.errors import Interrupted, PgolfError
from pgolf.runtime.environment import VERSION

if TYPE_CHECKING:
    from pgolf.api import TrainedRun
    from pgolf.compress.report import PackReport
    from pgolf.evaluate.evaluate import EvalResult
    from pgolf.generate.model import Model
    from pgolf.recipe.recipe import Recipe

__version__ = VERSION
__all__ = [
    "EvalResult",
    "Interrupted",
    "Model",
    "PackReport",
    "PgolfError",
    "Recipe",
    "TrainedRun",
    "evaluate",
    "load",
    "load_recipe",
    "pack",
    "train",
]
_TYPES = {
    "EvalResult": "pgolf.evaluate.evaluate",
    "Model": "pgolf.generate.model",
    "PackReport": "pgolf.compress.report",
    "Recipe": "pgolf.recipe.recipe",
    "TrainedRun": "pgolf.api",
}


if not TYPE_CHECKING:
    # Hidden from type checkers, which would otherwise take every misspelt name for something.
    def __getattr__(name: str) -> Any:
        if name not in _TYPES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_TYPES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
