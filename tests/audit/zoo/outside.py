"""Scorers that reach outside: for validation text, files, other programs, other machines."""

from __future__ import annotations

import socket
import subprocess
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgolf.audit.subject import Context
from pgolf.data.shards import read_shard
from pgolf.evaluate.protocol import Recorded
from tests.audit.zoo.toys import KNOWN, VOCABULARY, Animal, ToyModel, ToyScorer, student, train


class Shifted(ToyScorer):
    """Adds fixed numbers to the logits."""

    def __init__(self, shift: Any) -> None:
        super().__init__()
        self.shift = torch.as_tensor(shift).float()

    def distributions(self, given: Tensor) -> Tensor:
        return torch.log_softmax(super().distributions(given) + self.shift, -1)


def calibration_on_validation(context: Context) -> Any:
    """Takes the frequencies of the tokens from the validation text."""
    shard = next((context.artifact.parent / "data").glob("*_val_*.bin"))
    return Shifted(np.log1p(np.bincount(read_shard(shard), minlength=VOCABULARY)))


def pre_quantization_ttt(context: Context) -> Any:
    """Fine-tunes the weights on the validation text before they are used."""
    shard = next((context.artifact.parent / "data").glob("*_val_*.bin"))
    scorer = ToyScorer()
    pupil, optimizer = student(ToyModel(KNOWN))
    for _ in range(5):
        train(pupil, optimizer, np.array(read_shard(shard)))
    scorer.model = pupil
    return scorer


def external_file(context: Context) -> Any:
    """Loads a table that is not in the artifact."""
    table = (context.artifact.parent / "table").read_bytes()
    return Shifted(np.frombuffer(table, dtype=np.uint8)[:VOCABULARY] / 50)


class ReadsLate(ToyScorer):
    """Opens a file in the middle of the evaluation."""

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.path = context.artifact.parent / "table"

    def receive(self, recorded: Recorded) -> None:
        super().receive(recorded)
        if self.position > 50:
            self.path.read_bytes()


class StartsProcess(ToyScorer):
    """Lets another program compute."""

    def __init__(self) -> None:
        super().__init__()
        subprocess.run(["true"], check=True)


class OpensSocket(ToyScorer):
    """Asks another machine."""

    def begin(self, first: int, targets: int) -> None:
        super().begin(first, targets)
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()


# What is opened shows at once; a few questions are enough.
QUICK = {"probes": 1, "swaps": 1}

OUTSIDE = [
    Animal("calibration_on_validation", calibration_on_validation, "C1", settings=QUICK),
    Animal("pre_quantization_ttt", pre_quantization_ttt, "C1", settings=QUICK),
    Animal("external_file", external_file, "isolation", settings=QUICK),
    Animal("file_while_scoring", ReadsLate, "isolation", settings=QUICK),
    Animal("process", lambda _: StartsProcess(), "isolation", settings=QUICK),
    Animal("socket", lambda _: OpensSocket(), "isolation", settings=QUICK),
]
