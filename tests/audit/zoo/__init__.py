"""Valid and deliberately invalid scorers and evaluators, each with the condition that it violates."""

from __future__ import annotations

from tests.audit.zoo.cheating_evaluators import CHEATING_EVALUATORS
from tests.audit.zoo.cheating_memories import CHEATING_MEMORIES
from tests.audit.zoo.cheating_scorers import CHEATING_SCORERS
from tests.audit.zoo.outside import OUTSIDE
from tests.audit.zoo.toys import Animal
from tests.audit.zoo.valid import VALID

INVALID: list[Animal] = [*CHEATING_EVALUATORS, *CHEATING_SCORERS, *CHEATING_MEMORIES, *OUTSIDE]

__all__ = ["INVALID", "VALID", "Animal"]
