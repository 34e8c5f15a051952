"""Training, on one screen: ``train`` is the whole loop; ``Run.step`` (``run.py``) says what a step is."""

from __future__ import annotations

import signal
from collections.abc import Collection
from types import FrameType

from pgolf.errors import Interrupted
from pgolf.runtime.exclusive import working_in
from pgolf.runtime.processes import handling
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
    settings, clock, stop = run.recipe.train, run.clock, _StopSignal()
    run.prime_kernels()
    stopping_politely = handling(stop.receive, signal.SIGINT, signal.SIGTERM)
    with working_in(run.folder, run.team), run.batches, stopping_politely:
        try:
            while not run.is_finished():
                if clock.step == 0 or _every(settings.validate_every, clock.step):
                    watcher.validation(clock.step, run.validate(stop.was_sent))
                stopping = run.step(watcher, stop.was_sent)
                watcher.step(clock.step, run.metrics.last_loss, run.metrics.tokens_per_second)
                if _every(settings.checkpoint_every, clock.step) and not stopping:
                    run.save_checkpoint()
                if clock.step in keep:
                    run.save_checkpoint(snapshot(run.folder, clock.step))
                if stopping:
                    raise Stopped
            return close(run, watcher, stop.was_sent, averaged)
        except Stopped:
            run.save_checkpoint()
    raise Interrupted(f"stopped after step {clock.step}; the same command (train: with --resume) goes on")


def _every(interval: int, step: int) -> bool:
    return bool(interval) and step > 0 and step % interval == 0


class _StopSignal:
    """Turns the first SIGINT or SIGTERM into a request, so that no step is cut in half."""

    def __init__(self) -> None:
        self._sent = False

    def was_sent(self) -> bool:
        """Whether this rank is asked to stop."""
        return self._sent

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal."""
        # A scheduler may repeat SIGTERM, and so may a launcher; only a second Ctrl-C is impatience.
        if self._sent and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._sent = True
