"""What a recipe will cost, before anything is trained.

Of the shipped recipes ``estimates.json`` says it, so that nobody waits for torch to read about them; a test
keeps it true, and ``python -m tests.unit.test_estimate`` writes it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources

from pgolf.recipe.recipe import Recipe
from pgolf.runtime.processes import gib

TABLE = "estimates.json"


@dataclass(frozen=True)
class Estimate:
    """Costs of a recipe; ``costs`` in ``costs.py`` says what is counted."""

    parameters: int
    parameters_by_group: dict[str, int]
    artifact_bytes: int
    """Of the "budget" scheme at most what the cap leaves beside the code."""
    code_bytes: int
    """Of a shipped recipe when the table was written; packing counts what there is."""
    cap: int
    forward_flops_per_token: int
    training_flops_per_token: int
    training_memory_cpu: int
    training_memory_cuda: int
    counts_memory: int = 0
    """Main memory for the counts of the recipe's memory at most: of some 60 million tokens."""

    def rows(self) -> list[tuple[str, str]]:
        """The fields as labelled lines."""
        groups = ", ".join(f"{name} {count:,}" for name, count in self.parameters_by_group.items())
        forward, training = self.forward_flops_per_token, self.training_flops_per_token
        on_cpu, on_cuda = gib(self.training_memory_cpu), gib(self.training_memory_cuda)
        counts = [("memory for counts", f"at most {gib(self.counts_memory)}")] if self.counts_memory else []
        return [
            ("parameters", f"{self.parameters:,} ({groups})"),
            ("artifact", f"about {self.artifact_bytes:,} bytes"),
            ("with code", f"about {self.artifact_bytes + self.code_bytes:,} of {self.cap:,} bytes"),
            ("FLOPs per token", f"{forward:,} forward, {training:,} training"),
            ("training memory", f"about {on_cpu} on the CPU, {on_cuda} on CUDA"),
            *counts,
        ]


def estimate(recipe: Recipe) -> Estimate:
    """Parameters, bytes, floating-point operations and memory of a recipe."""
    known = json.loads((resources.files("pgolf.runs") / TABLE).read_text("utf-8"))
    found = known.get(table_key(recipe))
    if found is None:
        from pgolf.runs.costs import costs

        found = costs(recipe)
    cap = recipe.compress.cap
    if recipe.compress.scheme == "budget":
        found["artifact_bytes"] = min(found["artifact_bytes"], cap - found["code_bytes"])
    return Estimate(parameters=sum(found["parameters_by_group"].values()), cap=cap, **found)


def table_key(recipe: Recipe) -> str:
    """What a recipe's costs are called in the table."""
    return f"{recipe.name} {recipe.digest()[:16]}"
