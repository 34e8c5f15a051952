"""What a rank does in test_ranks.py: a list of commands, as if a launcher had started it for each of them.

rank_process.py JSON        [function, its arguments ...]
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from pgolf.cli.team import joined
from pgolf.evaluate.evaluate import EvalResult
from pgolf.runs import pipeline  # Loaded once, in the process that the ranks are forked from.
from pgolf.runtime import ranks
from pgolf.train.metrics import Metrics
from tests.e2e.conftest import pgolf


def run_rank(
    rank: int, size: int, commands: list[tuple[int, int, list[str]]], folder: str, results: str
) -> None:
    """Run the commands in ``folder``: (port to meet at, step after which the last rank is told to stop or 0,
    words).
    """
    torch.set_num_threads(1)
    for index, (port, stop_after, words) in enumerate(commands):
        place = {
            "RANK": rank,
            "WORLD_SIZE": size,
            "LOCAL_RANK": rank,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        with (
            mock.patch.dict(os.environ, {name: str(value) for name, value in place.items()}),
            stopping(stop_after if rank == size - 1 else 0),
            keeping_ledgers(Path(results, f"{index}.{rank}.ledger")),
        ):
            done = pgolf(*words, cwd=Path(folder), check=None)
            if dist.is_initialized():  # After a mistake a real process ends.
                dist.destroy_process_group()
        Path(results, f"{index}.{rank}.json").write_text(json.dumps(vars(done)))


def stop_last_rank(rank: int, size: int, port: int, how: int, results: str) -> None:
    """The last rank sends itself a signal. The first waits for it in a meeting, the others in a transfer."""
    limit = 3.0
    place = {
        "RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_RANK": rank,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    said, status = io.StringIO(), 0
    with (
        mock.patch.dict(os.environ, {name: str(value) for name, value in place.items()}),
        mock.patch.object(ranks, "TIMEOUT", timedelta(seconds=limit)),
        mock.patch.object(ranks, "_INTERVAL", 0.1),
        redirect_stderr(said),
    ):
        try:
            with joined("cpu") as (_, team):
                team.first(lambda: time.sleep(1.5 * limit))  # Long work is no silence.
                if rank == size - 1:
                    signal.raise_signal(how)
                if rank == 0:
                    team.meet()
                team.totals([1.0])
        except SystemExit as stop:
            status = int(stop.code or 0)
    Path(results, f"{rank}.json").write_text(json.dumps([status, said.getvalue()]))


@contextmanager
def keeping_ledgers(path: Path) -> Iterator[None]:
    """Write what this rank's evaluation recorded, as a single process would write it; the last one stays."""
    plain = pipeline.score_weights

    def evaluate(*arguments: Any, **options: Any) -> EvalResult:
        result = plain(*arguments, **options)
        path.write_bytes(result.ledger.content())
        return result

    with mock.patch.object(pipeline, "score_weights", evaluate):
        yield


@contextmanager
def stopping(after: int) -> Iterator[None]:
    """Send this process SIGTERM once it has finished a step; 0 is never."""
    plain = Metrics.step

    def step(self: Metrics, step: int, loss: Tensor, scale: float) -> None:
        plain(self, step, loss, scale)
        if step == after:
            signal.raise_signal(signal.SIGTERM)

    with mock.patch.object(Metrics, "step", step):
        yield


if __name__ == "__main__":
    name, *arguments = json.loads(sys.argv[1])
    {"run_rank": run_rank, "stop_last_rank": stop_last_rank}[name](*arguments)
