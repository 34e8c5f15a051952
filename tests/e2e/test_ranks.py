"""Two and four processes (gloo) do what one does: losses, weights, ledgers, scores, stops, mistakes."""

from __future__ import annotations

import json
import shutil
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from pgolf.compress.weights import load_tensors
from pgolf.train.metrics import read_metrics
from tests.e2e import rank_process
from tests.e2e.conftest import Done, made_once, pgolf
from tests.e2e.fork_server import Forked
from tests.e2e.rank_process import run_rank, stop_last_rank, stopping

# Four parts, so that four ranks can share them; several blocks of windows, so that there is something to
# divide.
SHARED = ("train", "--recipe", "tiny.toml", "--set", "train.micro_batches=4", "--data", "data")
EVAL = ("--data", "data", "--set", "evaluate.batch=3", "--json")
# Three windows to a block; the last TTT batch of a chunk is shared unevenly, and a lesson of three sequences
# leaves one of four ranks without any.
LEARNING = {
    "full": ("--mode", "ttt"),
    "lora": ("--mode", "ttt", "--set", "ttt.method=lora", "--set", "ttt.lora.chunk_tokens=96"),
    "lora_document": (
        "--mode",
        "ttt",
        "--set",
        "ttt.method=lora_document",
        "--set",
        "ttt.lora.chunk_tokens=96",
    ),
    "phased": (
        *("--mode", "ttt", "--set", "ttt.method=phased", "--set", "ttt.lora.chunk_tokens=72"),
        *("--set", "ttt.lr=0.05", "--set", "ttt.schedule=constant"),
    ),
}
SCORES = {"standard": ("--mode", "standard"), "sliding": ("--mode", "sliding"), **LEARNING}


@dataclass(frozen=True)
class Alone:
    """What a single process did, in a folder with prepared data."""

    folder: Path
    scores: dict[str, float]


@pytest.fixture(scope="module")
def alone(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    def work(folder: Path) -> None:
        shutil.copytree(workshop / "data", folder / "data")
        shutil.copy(workshop / "tiny.toml", folder)
        pgolf(*SHARED, "--out", "single", cwd=folder)
        scores = {}
        for name, how in SCORES.items():
            words = ("eval", "single", *how, "--ledger", f"{name}.1.jsonl", *EVAL)
            scores[name] = json.loads(pgolf(*words, cwd=folder).stdout)["val_bpb"]
        with stopping(5):
            pgolf(*SHARED, "--out", "begun.1", cwd=folder, check=130)
        (folder / "scores.json").write_text(json.dumps(scores))

    folder = made_once(tmp_path_factory, "alone", work)
    return Alone(folder, json.loads((folder / "scores.json").read_text()))


@pytest.fixture(scope="module", params=[2, 4], ids=["2 ranks", "4 ranks"])
def together(
    request: pytest.FixtureRequest, alone: Alone, tmp_path_factory: pytest.TempPathFactory
) -> Together:
    """Several commands by one start of the processes, which is what takes the time."""
    size = request.param
    commands: dict[str, tuple[int, list[str]]] = {
        "train": (0, [*SHARED, "--out", f"whole.{size}", "--json"]),
        "stop": (5, [*SHARED, "--out", f"begun.{size}"]),
        "resume": (0, [*SHARED, "--out", f"ended.{size}", "--resume"]),
        "mistake": (0, [*SHARED, "--out", "never", "--set", "train.micro_batches=1"]),
        "typing mistake": (0, ["train", "--nonsense"]),
    }
    for name, how in SCORES.items():
        commands[name] = (0, ["eval", "single", *how, "--ledger", f"{name}.{size}.jsonl", *EVAL])
    if size == 2:
        commands["run"] = (0, ["run", "tiny.toml", *SHARED[3:], "--out", "all", "--no-audit", "--json"])

    def work(results: Path) -> None:
        shutil.copytree(alone.folder / "begun.1", alone.folder / f"ended.{size}")
        listed = [(free_port(), stop, words) for stop, words in commands.values()]
        for process in started(size, run_rank, listed, str(alone.folder), results=results):
            assert process.wait(300) == 0, (results / "errors").read_text()

    results = made_once(tmp_path_factory, f"together-{size}", work)
    done = {
        name: [Done(**json.loads((results / f"{index}.{rank}.json").read_text())) for rank in range(size)]
        for index, name in enumerate(commands)
    }
    ledgers = {
        name: {(results / f"{index}.{rank}.ledger").read_text() for rank in range(size)}
        for index, name in enumerate(commands)
        if name in SCORES
    }
    return Together(size, alone, done, ledgers)


@dataclass(frozen=True)
class Together:
    """What ``size`` ranks did in the same folder: by command, what each of them printed."""

    size: int
    alone: Alone
    done: dict[str, list[Done]]
    ledgers: dict[str, set[str]]
    """By evaluation, the different ledgers that the ranks made."""

    def statuses(self, command: str) -> set[int]:
        return {rank.returncode for rank in self.done[command]}


def started(size: int, work: Callable[..., None], *arguments: object, results: Path) -> list[Forked]:
    """Processes that do ``work(rank, size, *arguments, results)``; their errors go into that folder."""
    words = [[work.__name__, rank, size, *arguments, str(results)] for rank in range(size)]
    return [
        Forked(rank_process.__file__, json.dumps(call), cwd=results, errors=results / "errors")
        for call in words
    ]


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def assert_close(first: Path, second: Path) -> None:
    """Weights within 1e-5 of each other."""
    weights, others = (
        load_tensors(first / "model.safetensors")[0],
        load_tensors(second / "model.safetensors")[0],
    )
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        assert torch.allclose(value, others[name], rtol=0, atol=1e-5), name


def test_training_gives_the_losses_and_weights_of_one_process(together: Together) -> None:
    assert together.statuses("train") == {0}, together.done["train"]
    folder = together.alone.folder
    mine, theirs = (
        read_metrics(folder / run / "metrics.jsonl") for run in (f"whole.{together.size}", "single")
    )
    assert [entry["step"] for entry in mine] == [entry["step"] for entry in theirs]
    for entry, other in zip(mine, theirs, strict=True):
        for key in {"train_loss", "val_loss", "val_bpb", "lr_scale"} & set(other):
            assert entry[key] == pytest.approx(other[key], abs=1e-5), (entry, other)
    assert_close(folder / f"whole.{together.size}", folder / "single")


def test_only_the_first_rank_prints(together: Together) -> None:
    first, *others = together.done["train"]
    assert json.loads(first.stdout)["steps"] == 12
    assert "validation" in first.stderr
    assert {(rank.stdout, rank.stderr) for rank in others} == {("", "")}


@pytest.mark.parametrize("mode", ["standard", "sliding"])
def test_the_ledger_is_the_one_that_a_single_process_writes(together: Together, mode: str) -> None:
    assert together.statuses(mode) == {0}, together.done[mode]
    folder = together.alone.folder
    mine = (folder / f"{mode}.{together.size}.jsonl").read_bytes()
    assert mine == (folder / f"{mode}.1.jsonl").read_bytes()
    assert mine.count(b"\n") > 4 * together.size, "too few blocks to say anything"


@pytest.mark.parametrize("method", LEARNING)
def test_test_time_training_gives_the_score_of_one_process(together: Together, method: str) -> None:
    assert together.statuses(method) == {0}, together.done[method]
    found = json.loads(together.done[method][0].stdout)
    assert found["val_bpb"] == pytest.approx(together.alone.scores[method], abs=1e-5)
    assert together.alone.scores[method] != pytest.approx(together.alone.scores["sliding"], abs=1e-3)
    folder, name = together.alone.folder, f"{method}.{together.size}.jsonl"
    lines = [
        [json.loads(line) for line in (folder / path).read_text().splitlines()[1:-1]]
        for path in (name, f"{method}.1.jsonl")
    ]
    for mine, theirs in zip(*lines, strict=True):
        assert all(mine[key] == theirs[key] for key in ("first", "targets", "bytes", "text"))
    # Equal weights on all ranks: states change where those of a single process do, whoever scored.
    changes = [
        [before["state"] != after["state"] for before, after in pairwise(entries)] for entries in lines
    ]
    assert changes[0] == changes[1] and 2 < sum(changes[0]) < len(changes[0])
    assert together.ledgers[method] == {(folder / name).read_text()}
    pgolf("verify-ledger", name, "--data", "data", cwd=folder)


def test_a_signal_to_any_rank_stops_all_of_them_after_the_same_step(together: Together) -> None:
    assert together.statuses("stop") == {130}, together.done["stop"]
    assert "stopped after step 5" in together.done["stop"][0].stderr
    # A single process goes on from there.
    run = f"begun.{together.size}"
    pgolf(*SHARED, "--out", run, "--resume", cwd=together.alone.folder)
    assert_close(together.alone.folder / run, together.alone.folder / "single")


def test_ranks_go_on_from_the_checkpoint_of_a_single_process(together: Together) -> None:
    assert together.statuses("resume") == {0}, together.done["resume"]
    assert_close(together.alone.folder / f"ended.{together.size}", together.alone.folder / "single")


def test_the_whole_job(together: Together) -> None:
    if "run" not in together.done:
        pytest.skip("run by two ranks only")
    assert together.statuses("run") == {0}, together.done["run"]
    folder = together.alone.folder
    result = json.loads(together.done["run"][0].stdout)
    assert result == json.loads((folder / "all" / "result.json").read_text())
    assert set(result["evaluations"]) == {"raw", "float", "packed", "sliding", "ttt"}
    assert (folder / "all" / "report.md").is_file()
    assert_close(folder / "all", folder / "single")
    assert result["evaluations"]["float"]["val_bpb"] == pytest.approx(
        together.alone.scores["standard"], abs=1e-5
    )


def test_a_mistake_is_printed_once_and_ends_every_rank(together: Together) -> None:
    assert together.statuses("mistake") == {2}, together.done["mistake"]
    said = [line for rank in together.done["mistake"] for line in rank.stderr.splitlines()]
    assert len(said) == 1
    for text in (
        "train.micro_batches 1",
        "train.batch_tokens 256",
        f"cannot be shared by {together.size} ranks",
    ):
        assert text in said[0]
    assert not (together.alone.folder / "never").exists()
    assert together.statuses("typing mistake") == {2}
    assert sum("nonsense" in rank.stderr for rank in together.done["typing mistake"]) == 1


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="stops a process by a signal")
@pytest.mark.parametrize("how", ["SIGSTOP", "SIGKILL"])
def test_ranks_do_not_wait_for_one_that_is_stopped(tmp_path: Path, how: str) -> None:
    processes = started(3, stop_last_rank, free_port(), int(signal.Signals[how]), results=tmp_path)
    try:
        for process in processes[:2]:
            process.wait(100)
        alive = processes[2].poll() is None
    finally:
        for process in processes:
            process.kill()
    assert alive == (how == "SIGSTOP"), "one that is stopped has not ended"
    said = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    # A transfer ends at once with a rank that is killed, before anybody has missed its signs of life; so
    # rank 1 ends too.
    whom = ["rank 2", "rank 2"] if alive else ["ranks 1, 2", "another one"]
    for rank, (status, text) in enumerate(said):
        assert status == 1 and text.count("\n") == 1, said
        assert (
            f"pgolf: rank {rank} of 3 lost contact with {whom[rank]}, which is gone, or has not answered for "
            "3 s" in text
        )
    assert "no sign of life" in said[0][1]
