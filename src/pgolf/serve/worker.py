"""Work for requests: step by step, in one thread, so that all who wait get on and torch computes for one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

_Result = TypeVar("_Result")
_END = object()


@dataclass(frozen=True)
class Limits:
    """Of requests."""

    max_body: int
    """Bytes."""
    max_tokens: int
    """That one answer may have."""
    concurrency: int
    """Requests at work or waiting at a time."""


class Busy(Exception):
    """As many requests as may be at work or waiting are there already, or the server ends."""


class Worker:
    """Takes the next step of each work in turn; ``most`` works at a time."""

    def __init__(self, most: int) -> None:
        self._most, self._thread = most, ThreadPoolExecutor(1, "model")
        self.works = 0
        """How many are in progress."""
        self.closing = False
        """Set it, and every work ends after its step with ``Busy``."""

    async def run(self, make: Callable[[], Iterator[_Result]]) -> AsyncGenerator[_Result, None]:
        """The steps of a work; it is given up where this iterator is closed."""
        if self.works >= self._most:
            raise Busy(f"{self.works} requests are at work already; try again, or raise --concurrency")
        loop, self.works = asyncio.get_running_loop(), self.works + 1
        try:
            steps = await loop.run_in_executor(self._thread, make)
            while (result := await loop.run_in_executor(self._thread, next, steps, _END)) is not _END:
                if self.closing:
                    raise Busy("the server is ending")
                yield result  # type: ignore[misc]
        finally:
            self.works -= 1
