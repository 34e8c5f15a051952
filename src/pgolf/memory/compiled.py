"""Functions that numba compiles once and keeps, so that the next process finds them compiled.

What they compute must not depend on the machine: a stored text that one machine wrote is read on others. So
they use nothing but exact integer arithmetic and single operations of IEEE 754 in a fixed order: no fast
mathematics, no exp or log of the system's library (``tables.py`` has tables in their place).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba

compiled: Callable[[Any], Any] = numba.njit(cache=True, error_model="numpy", fastmath=False)
"""The decorator."""
