"""Training, on one screen: ``train`` is the whole loop; ``run.py`` says what a step is."""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection
from types import FrameType
from typing import Any

from pgolf.errors import Interrupted
from pgolf.runtime.exclusive import working_in
from pgolf.train.checkpoint import snapshot
from pgolf.train.closing import TrainResult, close
from pgolf.train.run import Run, Stopped, Watcher


def train(run: Run, watcher: Watcher, keep: Collection[int] = (), averaged: bool = True) -> TrainResult:
    """Train until the recipe's steps or its wall-clock time are used up; save, score and record the weights.

    Args:
        run: goes on where it stands; all that is left may be the closing validation.
        watcher: is told how it goes.
        keep: the checkpoints after these steps stay in the run folder.
        averaged: score the averaged weights too, not the last ones alone.

    Raises:
        Interrupted: SIGINT or SIGTERM arrived; a checkpoint of the last finished step is on the disk.
        PgolfError: the loss is no longer a finite number; the last checkpoint is still there. Or the disk is
            full; the last checkpoint is still there, or the final weights are (see ``closing.close``).
    """
    clock = run.clock
    run.prime_kernels()
    with working_in(run.folder, run.team), run.batches, _StopSignal() as stop:
        try:
            _take_steps(run, watcher, keep, lambda: stop.requested)
            return close(run, watcher, lambda: stop.requested, averaged)
        except Stopped:
            run.save_checkpoint()
    raise Interrupted(f"stopped after step {clock.step}; the same command (train: with --resume) goes on")


def _take_steps(run: Run, watcher: Watcher, keep: Collection[int], asked_to_stop: Callable[[], bool]) -> None:
    train, clock = run.recipe.train, run.clock
    while not run.is_finished():
        if clock.step == 0 or _every(train.validate_every, clock.step):
            watcher.validation(clock.step, run.validate(asked_to_stop))
        stopping = run.step(watcher, asked_to_stop)
        watcher.step(clock.step, run.metrics.last_loss, run.metrics.tokens_per_second)
        if _every(train.checkpoint_every, clock.step) and not stopping:
            run.save_checkpoint()
        if clock.step in keep:
            run.save_checkpoint(snapshot(run.folder, clock.step))
        if stopping:
            raise Stopped


def _every(interval: int, step: int) -> bool:
    return bool(interval) and step > 0 and step % interval == 0


class _StopSignal:
    """Turns the first SIGINT or SIGTERM into a request, so that no step is cut in half."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> _StopSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._request)
            except ValueError:  # Only the main thread may set handlers; elsewhere the caller's stay.
                break
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        # A scheduler may repeat SIGTERM, and so may a launcher; only a second Ctrl-C is impatience.
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
