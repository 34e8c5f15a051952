"""The program of a submission: train, pack, read the artifact back, and score it.

    torchrun --standalone --nproc_per_node=8 train_gpt.py --data DATA --tokenizer MODEL --seed 1337
    torchrun --standalone --nproc_per_node=8 train_gpt.py --data DATA --tokenizer MODEL --artifact FILE

Training reads DATA/*_train_*.bin, scoring DATA/*_val_*.bin and the artifact.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgolf.compress.calibrate import calibration_for
from pgolf.compress.code_size import code_bytes
from pgolf.compress.container import read_artifact
from pgolf.compress.grid import Grid
from pgolf.compress.pack import fit
from pgolf.data.dataset import Dataset, open_dataset
from pgolf.errors import PgolfError
from pgolf.evaluate.build import uses_memory
from pgolf.evaluate.evaluate import EvalResult, evaluate
from pgolf.memory.stored import read_start
from pgolf.model.load import model_from
from pgolf.optim.place import place
from pgolf.recipe.recipe import Recipe
from pgolf.runs.stored_text import with_memory
from pgolf.runtime.ranks import Ranks, join
from pgolf.runtime.run_files import ARTIFACT
from pgolf.runtime.team import Team
from pgolf.runtime.writing import atomic_write, write_bytes
from pgolf.submit.standins import RECIPE, with_seed
from pgolf.train.run import Run


@dataclass(frozen=True)
class Log:
    """Lines on standard output, of the first rank alone."""

    team: Team

    def line(self, text: str) -> None:
        """Print a line at once."""
        if self.team.is_first:
            print(text, flush=True)

    def note(self, text: str, done: int = 0, total: int = 0, /) -> None:
        """Something worth a line begins, or goes on."""
        if not done:
            self.line(f"note: {text}")

    def step(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Training goes on."""
        speed = f"tokens_per_second:{tokens_per_second:.0f}"
        self.line(f"step:{step}/{RECIPE.train.steps} train_loss:{loss:.6f} {speed}")

    def validation(self, step: int, result: EvalResult) -> None:
        """The raw weights were validated."""
        scores = f"val_loss:{result.val_loss:.8f} val_bpb:{result.val_bpb:.8f}"
        self.line(f"step:{step}/{RECIPE.train.steps} {scores}")

    def evaluation(self, what: str, done: int, total: int) -> None:
        """A log has no use for it."""


def train(
    recipe: Recipe, dataset: Dataset, out: Path, device: torch.device, team: Team, log: Log
) -> tuple[dict[str, Tensor], Grid | None]:
    """Train, and keep the weights in ``weights.pt`` before anything else is done with them.

    Returns:
        The averaged weights in float32 on the CPU, sorted by name, and the grid they were rounded on.
    """
    run = Run(recipe, dataset, out, device, team=team)
    run.prime_kernels()
    every = recipe.train.validate_every
    with run.batches:
        while not run.is_finished():
            if run.clock.step == 0 or (every and run.clock.step % every == 0):
                log.validation(run.clock.step, run.validate())
            run.step(log)
            log.step(run.clock.step, run.metrics.last_loss, run.metrics.tokens_per_second)
    averaged = run.averager.result(run.network.state_dict())
    weights = {name: averaged[name].detach().float().cpu() for name in sorted(averaged)}
    team.first(lambda: save(weights, out / "weights.pt"))
    log.validation(run.clock.step, run.validate())
    log.line(f"trained: {run.clock.step} steps in {run.clock.seconds:.1f} s")
    return weights, run.grid


def save(weights: dict[str, Tensor], path: Path) -> None:
    """Write weights as ``torch.save`` does."""
    with atomic_write(path) as file:
        torch.save(weights, file)


def pack_weights(
    recipe: Recipe,
    dataset: Dataset,
    weights: dict[str, Tensor],
    grid: Grid | None,
    path: Path,
    room: int,
    log: Log,
) -> None:
    """Write an artifact of at most ``room`` bytes."""
    network = model_from(recipe.model, weights)
    calibration = calibration_for(network.eval(), recipe, dataset)
    limit = recipe.compress.cap
    given = weights, recipe, dataset.tokenizer.digest, path, limit, limit - room
    how: dict[str, Any] = {"calibration": calibration, "note": log.note, "grid": grid}
    if recipe.memory.enabled:
        how = with_memory(given, dataset, how)
    write_bytes(path, fit(*given, **how).content)


def run_all(options: argparse.Namespace, device: torch.device, team: Team) -> None:
    """Train and pack, unless an artifact is given; then score the artifact."""
    log, recipe = Log(team), with_seed(RECIPE, options.seed)
    dataset = open_dataset(options.data, options.tokenizer, recipe.model.vocab_size)

    def score(recipe: Recipe, weights: dict[str, Tensor], what: str, mode: str, section: bytes = b"") -> None:
        """Score weights, on all targets or the first ones, and print the result."""
        memory = None
        if uses_memory(recipe, mode):
            memory = read_start(recipe.memory, section, recipe.model.vocab_size, what)
        placed = place(model_from(recipe.model, weights).eval(), recipe, device)
        text = dataset.validation_text(recipe.evaluation_length, options.targets)
        team.meet()
        found = evaluate(placed, recipe, *text, mode, team=team, memory=memory)
        scores = f"val_loss:{found.val_loss:.8f} val_bpb:{found.val_bpb:.8f} targets:{found.targets}"
        log.line(f"{what} {mode} {scores} bytes:{found.bytes} eval_time:{found.seconds:.1f}s")
        log.line("result " + json.dumps({"name": f"{what} {mode}", **found.to_json()}))

    place_and_versions = f"ranks:{team.size} device:{device} torch:{torch.__version__}"
    log.line(f"recipe:{recipe.name} seed:{recipe.train.seed} {place_and_versions}")
    path = options.artifact
    if path is None:
        weights, grid = train(recipe, dataset, options.out, device, team, log)
        score(recipe, weights, "float", "standard")
        path = options.out / ARTIFACT
        room = options.room or recipe.compress.cap - code_bytes()
        started = time.perf_counter()
        team.first(lambda: pack_weights(recipe, dataset, weights, grid, path, room, log))
        log.line(f"packed: {time.perf_counter() - started:.1f} s")
    artifact = read_artifact(path)
    code, size = code_bytes(), path.stat().st_size
    log.line(f"bytes: code {code} + model {size} = {code + size} of {recipe.compress.cap}")
    for mode in options.modes.split(","):
        score(artifact.recipe, artifact.state, "artifact", mode, artifact.memory)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train, pack, read the artifact back, and score it.")
    data = Path("data/datasets/fineweb10B_sp1024")
    parser.add_argument("--data", type=Path, default=data, help="token shards")
    parser.add_argument(
        "--tokenizer", type=Path, help="SentencePiece model, where the data folder holds none"
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="for metrics.jsonl and what is made")
    parser.add_argument("--seed", type=int, default=RECIPE.train.seed, help="of the initial weights")
    parser.add_argument("--artifact", type=Path, help="score this one; nothing is trained")
    parser.add_argument("--modes", default="sliding,ttt", help="how to score: standard, sliding, ttt")
    parser.add_argument("--targets", type=int, help="score only the first ones")
    parser.add_argument("--room", type=int, help="bytes for the artifact; default: the cap without this file")
    parser.add_argument("--device", help="cpu or cuda")
    return parser.parse_args(arguments)


def main() -> None:
    """Run on this rank."""
    options = parse(sys.argv[1:])
    try:
        device, team = join(options.device)
        run_all(options, device, team)
        if isinstance(team, Ranks):
            team.leave()
    except PgolfError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
