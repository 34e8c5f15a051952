"""The evaluations of a run: the one table of their names and of what they score. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pgolf.runtime.run_files import ARTIFACT, MODEL, RAW

if TYPE_CHECKING:
    from pgolf.recipe.recipe import Recipe

_WEIGHTS = {RAW: "last weights", MODEL: "averaged weights", ARTIFACT: "the artifact"}
_HOW = {"standard": "standard windows", "sliding": "sliding windows", "ttt": "legal test-time training"}


class Evaluation(NamedTuple):
    """One score of a run."""

    name: str
    """In ``result.json``, on the command line and in file names."""
    file: str
    """Which weights of the run folder are scored."""
    mode: str
    """How: standard, sliding or ttt."""
    title: str
    """Its name in a sentence."""
    label: str
    """Its name beside its bits per byte."""
    step: str
    """What changes from the evaluation before to this one."""
    memory: bool = False
    """With the recipe's memory; made only where there is one."""

    @property
    def of(self) -> str:
        """What is scored and how, in words."""
        return f"{_WEIGHTS[self.file]}, {_HOW[self.mode]}{' and memory' if self.memory else ''}"

    @property
    def ledger(self) -> str:
        """Name of its ledger in the run folder."""
        return f"ledger.{self.name}.jsonl"


_ROWS = (
    ("raw", RAW, "standard", "raw float", "raw float BPB", ""),
    ("float", MODEL, "standard", "averaged float", "float BPB", "averaging"),
    ("packed", ARTIFACT, "standard", "packed", "packed BPB", "quantization"),
    ("sliding", ARTIFACT, "sliding", "sliding", "sliding BPB", "sliding windows"),
    ("ttt", ARTIFACT, "ttt", "TTT", "TTT BPB", "TTT"),
    ("memory", ARTIFACT, "ttt", "memory", "memory BPB", "memory", True),
)
EVALUATIONS = {row[0]: Evaluation(*row) for row in _ROWS}
"""By name, from the last weights to the score that counts; each changes one thing of the one before."""
SCORES = tuple(EVALUATIONS)[1:]
"""What `pgolf run` can be asked for. Training makes "raw" itself."""
OF_MODE = {"standard": "packed", "sliding": "sliding", "ttt": "ttt"}
"""The evaluation of the artifact in each mode, without memory."""


def usual_mode(recipe: Recipe) -> str:
    """The mode to score in where none is asked for: "ttt" where the recipe learns from scored text."""
    ttt = recipe.ttt
    learns = recipe.memory.enabled or (ttt.epochs if ttt.method == "full" else ttt.lora.epochs) > 0
    return "ttt" if learns else "sliding"


def evaluation_names(memory: bool) -> list[str]:
    """Those that a run makes, of a recipe with or without a memory."""
    return [name for name, entry in EVALUATIONS.items() if memory or not entry.memory]
