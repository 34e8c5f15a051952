"""pgolf: byte-budgeted language models, from text to a score in bits per byte.

``load``, ``train``, ``pack``, ``evaluate`` and the other functions here are the library; docs/api.md shows
them.
Importing this is quick: torch and the rest are loaded by the first of them that is called.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Some functions share their names with packages. A package's name is bound when it is first imported; so that
# comes first, and the functions keep the names whatever is imported later.
import pgolf.audit as _audit  # noqa: F401
import pgolf.compress as _compress  # noqa: F401
import pgolf.evaluate as _evaluate  # noqa: F401
import pgolf.report as _report  # noqa: F401
import pgolf.study as _study  # noqa: F401
import pgolf.train as _train  # noqa: F401
from pgolf.api import (
    audit,
    compress,
    decompress,
    evaluate,
    load,
    load_recipe,
    pack,
    report,
    study,
    train,
)
from pgolf.errors import Interrupted, PgolfError
from pgolf.runtime.environment import VERSION

if TYPE_CHECKING:
    from pgolf.api import Compressed, StudyResult, TrainedRun
    from pgolf.audit.report import Report as AuditReport
    from pgolf.compress.report import PackReport
    from pgolf.evaluate.evaluate import EvalResult
    from pgolf.generate.model import Model
    from pgolf.recipe.recipe import Recipe

__version__ = VERSION
__all__ = [
    "AuditReport",
    "Compressed",
    "EvalResult",
    "Interrupted",
    "Model",
    "PackReport",
    "PgolfError",
    "Recipe",
    "StudyResult",
    "TrainedRun",
    "audit",
    "compress",
    "decompress",
    "evaluate",
    "load",
    "load_recipe",
    "pack",
    "report",
    "study",
    "train",
]
_TYPES = {
    "AuditReport": "pgolf.audit.report",
    "Compressed": "pgolf.api",
    "EvalResult": "pgolf.evaluate.evaluate",
    "Model": "pgolf.generate.model",
    "PackReport": "pgolf.compress.report",
    "Recipe": "pgolf.recipe.recipe",
    "StudyResult": "pgolf.api",
    "TrainedRun": "pgolf.api",
}


if not TYPE_CHECKING:
    # Hidden from type checkers, which would otherwise take every misspelt name for something.
    def __getattr__(name: str) -> Any:
        if name not in _TYPES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_TYPES[name]), name.removeprefix("Audit"))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
