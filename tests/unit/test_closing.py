"""The end of training: at no moment is anything lost, scores stand beside their files, clocks are honest."""

from __future__ import annotations

import errno
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pgolf.compress.weights import load_weights
from pgolf.data.dataset import Dataset
from pgolf.errors import Interrupted, PgolfError
from pgolf.evaluate.evaluate import EvalResult
from pgolf.report.run_report import run_report
from pgolf.runs.folder import is_trained, open_run
from pgolf.runs.pipeline import evaluate_weights, run_all
from pgolf.runs.records import read_run
from pgolf.runtime.paths import write_error
from pgolf.runtime.team import Team
from pgolf.train import closing
from pgolf.train import run as running
from pgolf.train.checkpoint import set_aside
from pgolf.train.loop import train
from pgolf.train.metrics import read_metrics
from pgolf.train.run import Run
from tests.unit.test_train import CPU, Watcher, dataset, equal, recipe, train_steps

__all__ = ["dataset"]  # a fixture
FILES = ("model.safetensors", "raw.safetensors", "recipe.toml")


class Cut(BaseException):
    """The process is gone."""


def files(folder: Path) -> dict[str, Any]:
    """What must not depend on interruptions: bytes, validations, scores."""
    found: dict[str, Any] = {name: (folder / name).read_bytes() for name in FILES}
    found["metrics"] = [
        {key: value for key, value in entry.items() if key != "tokens_per_second"}
        for entry in read_metrics(folder / "metrics.jsonl")
    ]
    result = json.loads((folder / "result.json").read_text())
    found["scores"] = {name: entry["val_bpb"] for name, entry in result["evaluations"].items()}
    found["ledger"] = (folder / "ledger.float.jsonl").read_bytes()
    found["names"] = {path.name for path in folder.iterdir()}
    return found | {"steps": result["train"]["steps"]}


@pytest.fixture(scope="module")
def whole(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(open_run(recipe(), dataset, folder, CPU), Watcher())
    return files(folder) | {"folder": folder}


@pytest.mark.parametrize(
    ("module", "name", "calls", "saved"),
    [
        (running, "save_checkpoint", 1, set()),
        (running, "save_weights", 1, {"checkpoint.safetensors"}),
        (running, "save_weights", 2, {"checkpoint.safetensors", "raw.safetensors"}),
        (running, "evaluate", 2, {"checkpoint.safetensors", "raw.safetensors", "model.safetensors"}),
        (closing, "score_weights", 1, {"checkpoint.safetensors", "raw.safetensors", "model.safetensors"}),
        (closing, "write_json", 1, {"checkpoint.safetensors", "model.safetensors", "ledger.float.jsonl"}),
        (Run, "remove_checkpoint", 1, {"checkpoint.safetensors", "model.safetensors", "result.json"}),
    ],
)
def test_a_kill_at_the_end_loses_nothing(
    dataset: Dataset,
    tmp_path: Path,
    whole: dict[str, Any],
    module: Any,
    name: str,
    calls: int,
    saved: set[str],
) -> None:
    plain, seen = getattr(module, name), 0

    def dying(*given: Any, **named: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == calls:
            raise Cut
        return plain(*given, **named)

    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Cut):
        patch.setattr(module, name, dying)
        train(open_run(recipe(), dataset, folder, CPU), Watcher())
    assert saved <= {path.name for path in folder.iterdir()}
    assert not is_trained(folder)
    assert read_run(folder).state == ("training" if "result.json" not in saved else "trained")
    run = open_run(recipe(), dataset, folder, CPU, resume=True)
    if saved:
        run.accumulate_gradients = None  # type: ignore[method-assign, assignment]
    train(run, Watcher())
    assert files(folder) == {key: value for key, value in whole.items() if key != "folder"}
    assert is_trained(folder)


@pytest.mark.parametrize("moment", [0, 3, 6])
def test_a_signal_during_a_validation_is_heeded_at_once(
    dataset: Dataset, tmp_path: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    folder, blocks = tmp_path / "run", 0
    made = recipe("train.validate_every=3", "evaluate.batch=1")
    run = open_run(made, dataset, folder, CPU)
    plain = running.evaluate

    def interrupted(
        network: Any, made: Any, tokens: Any, table: Any, mode: Any, watch: Any, **named: Any
    ) -> EvalResult:
        def look(done: int, total: int) -> None:
            nonlocal blocks
            blocks += run.clock.step == moment
            if blocks == 2:
                signal.raise_signal(signal.SIGTERM)
            watch(done, total)

        return plain(network, made, tokens, table, mode, look, **named)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match=f"stopped after step {moment}"):
        patch.setattr(running, "evaluate", interrupted)
        train(run, Watcher())
    assert blocks == 2
    assert (folder / "checkpoint.safetensors").is_file()
    resumed = open_run(made, dataset, folder, CPU, resume=True)
    assert resumed.clock.step == moment
    train(resumed, Watcher())
    found = load_weights(folder).state
    monkeypatch.setattr(running, "evaluate", plain)
    train(open_run(made, dataset, tmp_path / "other", CPU), Watcher())
    assert equal(found, load_weights(tmp_path / "other").state)
    assert files(folder)["scores"] == files(tmp_path / "other")["scores"]


def test_a_validation_that_fails_destroys_nothing(dataset: Dataset, tmp_path: Path) -> None:
    made = recipe("train.checkpoint_every=4")
    run = open_run(made, dataset, tmp_path / "run", CPU)
    train_steps(run, 5)
    kept = (tmp_path / "run" / "checkpoint.safetensors").read_bytes()
    with torch.no_grad():
        run.network.token_embedding.weight[0, 0] = float("inf")
    with pytest.raises(
        PgolfError, match=r"after step 5 the weights are not finite numbers; lower the optim\.\*_lr"
    ):
        run.save_checkpoint()
    assert (tmp_path / "run" / "checkpoint.safetensors").read_bytes() == kept
    # Finite weights whose loss is no number.
    other = open_run(made, dataset, tmp_path / "other", CPU)

    def failing(*given: Any, **named: Any) -> EvalResult:
        raise PgolfError("the scorer's losses are not finite numbers")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(PgolfError, match="validation after step 6"):
        train_steps(other, 5)
        patch.setattr(running, "evaluate", failing)
        train(other, Watcher())
    assert {"checkpoint.safetensors", "model.safetensors"} <= {
        path.name for path in (tmp_path / "other").iterdir()
    }


@pytest.mark.parametrize("earlier", [0, 4])
def test_a_disk_with_room_for_the_weights_alone_gets_them(
    dataset: Dataset, tmp_path: Path, whole: dict[str, Any], earlier: int
) -> None:
    made = recipe(f"train.checkpoint_every={earlier}", "compress.calibration_tokens=64")
    folder, plain = tmp_path / "run", running.save_checkpoint

    def full(path: Path, *state: Any) -> None:
        if state[3].step == 6:
            raise write_error(path, OSError(errno.ENOSPC, "No space left on device"))
        plain(path, *state)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(PgolfError) as caught:
        patch.setattr(running, "save_checkpoint", full)
        train(open_run(made, dataset, folder, CPU), Watcher())
    said = str(caught.value)
    assert said.startswith(f"{folder / 'checkpoint.safetensors'}: the disk is full") and "\n" not in said
    assert "its weights (raw.safetensors, model.safetensors) are there, their scores are not" in said
    for name in ("raw.safetensors", "model.safetensors"):
        assert equal(load_weights(folder / name).state, load_weights(whole["folder"] / name).state)
    # Training is over, and is known to be; nothing is trained again, and what is missing is made.
    assert is_trained(folder) and not (folder / "checkpoint.safetensors").exists()
    record = read_run(folder)
    assert (record.state, record.result["train"]["steps"], dict(record.evaluations)) == ("trained", 6, {})
    assert "6 steps in" in str(run_report(record))
    with pytest.raises(PgolfError, match="training is already finished"):
        open_run(made, dataset, folder, CPU, resume=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pgolf.runs.pipeline.train", None)
        result = run_all(made, dataset.folder, None, folder, CPU, scores=("float", "packed"))
    assert result["train"]["seconds"] == record.result["train"]["seconds"] > 0
    assert {name: result["evaluations"][name]["val_bpb"] for name in ("raw", "float")} == whole["scores"]


def test_a_disk_without_room_for_the_weights_keeps_the_last_checkpoint(
    dataset: Dataset, tmp_path: Path
) -> None:
    made, folder, plain = recipe("train.checkpoint_every=4"), tmp_path / "run", running.save_checkpoint

    def full(path: Path, *state: Any) -> None:
        raise write_error(path, OSError(errno.ENOSPC, "No space left on device"))

    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(PgolfError, match=r"raw\.safetensors: the disk is full"),
    ):
        patch.setattr(
            running, "save_checkpoint", lambda *given: plain(*given) if given[4].step < 6 else full(*given)
        )
        patch.setattr(running, "save_weights", full)
        train(open_run(made, dataset, folder, CPU), Watcher())
    assert not is_trained(folder)
    assert open_run(made, dataset, folder, CPU, resume=True).clock.step == 4


def test_scoring_the_averaged_weights_shows_progress(dataset: Dataset, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []

    class Counting(Watcher):
        def evaluation(self, what: str, done: int, total: int) -> None:
            seen.append((what, done, total))

    train(open_run(recipe("evaluate.batch=1"), dataset, tmp_path / "run", CPU), Counting())
    assert len(seen) > 2
    assert {what for what, _, _ in seen} == {"float BPB"}
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert seen[-1][1] == seen[-1][2]


@pytest.mark.parametrize("kind", ["none", "ema"])
def test_each_score_is_that_of_its_file(dataset: Dataset, tmp_path: Path, kind: str) -> None:
    made = recipe(f"average.kind={kind}", "average.decay=0.9")
    done = train(open_run(made, dataset, tmp_path / "run", CPU), Watcher())
    assert done.averaged is not None
    assert done.weights.name == "model.safetensors"
    for name, score in (("model.safetensors", done.averaged), ("raw.safetensors", done.raw)):
        again = evaluate_weights(load_weights(tmp_path / "run" / name), made, dataset, "standard", CPU)
        assert again.val_bpb == score.val_bpb
    assert (done.averaged.val_bpb == done.raw.val_bpb) == (kind == "none")


def test_a_run_goes_on_with_what_training_recorded(dataset: Dataset, tmp_path: Path) -> None:
    made, folder = recipe("compress.calibration_tokens=64"), tmp_path / "run"
    first = open_run(made, dataset, folder, CPU)
    train_steps(first, 3)
    first.save_checkpoint()
    before = first.clock.seconds
    assert before > 0
    done = train(open_run(made, dataset, folder, CPU, resume=True), Watcher())
    assert done.seconds > before, "sessions add up"
    record = read_run(folder)
    assert record.state == "trained"
    assert record.result["train"]["seconds"] == done.seconds
    assert record.score("float") == done.averaged.val_bpb  # type: ignore[union-attr]
    evaluated: list[str] = []

    def counting(*given: Any, **named: Any) -> Any:
        evaluated.append(given[3])
        return evaluate_weights(*given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pgolf.runs.pipeline.evaluate_weights", counting)
        result = run_all(made, dataset.folder, None, folder, CPU, scores=("float", "packed"))
    assert evaluated == ["standard"], "the packed weights alone"
    assert result["train"]["seconds"] == done.seconds
    assert "float BPB" in str(run_report(read_run(folder), dataset))


def test_a_report_prints_no_time_that_is_not_known(dataset: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(open_run(recipe(), dataset, folder, CPU), Watcher())
    result = json.loads((folder / "result.json").read_text())
    for seconds, words in (
        (0.44, "6 steps in 0.4 s"),
        (9.96, "6 steps in 10 s"),
        (2345.6, "6 steps in 2,346 s"),
    ):
        result["train"]["seconds"] = seconds
        (folder / "result.json").write_text(json.dumps(result))
        assert words in str(run_report(read_run(folder)))
    (folder / "result.json").unlink()  # as runs of earlier versions
    text = str(run_report(read_run(folder)))
    assert "6 steps" in text
    assert "6 steps in" not in text


@pytest.mark.parametrize(
    "content",
    [
        *("{}", "[]", "7", "{", '{"evaluations": []}', '{"evaluations": {"float": {}}}'),
        *('{"evaluations": {}, "train": {"steps": [1]}}', '{"evaluations": {}, "pack": null}'),
    ],
)
def test_results_that_are_damaged_are_named_before_any_work(
    dataset: Dataset, tmp_path: Path, content: str
) -> None:
    folder = tmp_path / "run"
    train_steps(open_run(recipe(), dataset, folder, CPU), 1)
    (folder / "result.json").write_text(content)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for read in (lambda: run_all(recipe(), dataset.folder, None, folder, CPU), lambda: read_run(folder)):
        with pytest.raises(PgolfError, match=r"run/result\.json: (damaged \(.*\); restore|not valid JSON)"):
            read()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


class SlowFirst:
    """A model whose first pass in a process takes long, as if it compiled, and a clock that only it moves."""

    def __init__(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.passes, self._network = 0.0, 0, run.network
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        run.forward = self

    def __call__(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        self.now += 0.5 if self.passes else 1000.0
        self.passes += 1
        return self._network(inputs, targets)


@pytest.mark.parametrize("warmup", [0, 2])
def test_compiling_is_not_training_time(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warmup: int
) -> None:
    # A step has two micro-batches of half a second.
    made = recipe("train.wallclock_seconds=8", "train.steps=100", f"train.warmup_steps={warmup}")
    run = open_run(made, dataset, tmp_path / "run", CPU)
    with monkeypatch.context() as patch:
        clock = SlowFirst(run, patch)
        train_steps(run, 5)
        run.save_checkpoint()
    assert run.clock.seconds == 5.0
    assert clock.passes == 2 * (5 + max(warmup, 1))
    resumed = open_run(made, dataset, tmp_path / "run", CPU, resume=True)
    with monkeypatch.context() as patch:
        SlowFirst(resumed, patch)
        done = train(resumed, Watcher())
    assert (done.steps, done.seconds) == (8, 8.0)
    scales = [
        entry["lr_scale"]
        for entry in read_metrics(tmp_path / "run" / "metrics.jsonl")
        if "train_loss" in entry
    ]
    assert scales == [1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_a_plain_run_on_the_cpu_is_not_primed(dataset: Dataset, tmp_path: Path) -> None:
    run = open_run(recipe(), dataset, tmp_path / "run", CPU)
    run.accumulate_gradients = None  # type: ignore[method-assign, assignment]
    run.prime_kernels()


@pytest.mark.parametrize("grid", ["int6", "export"])
def test_priming_a_resumed_run_leaves_no_trace(dataset: Dataset, tmp_path: Path, grid: str) -> None:
    settings = (
        f"qat.grid={grid}",
        "qat.enabled=true",
        "qat.threshold=0.6",
        "average.kind=ema",
        "average.decay=0.7",
    )
    made = recipe("train.warmup_steps=2", "compress.scheme=rowwise", *settings)
    whole = open_run(made, dataset, tmp_path / "whole", CPU)
    train(whole, Watcher())
    first = open_run(made, dataset, tmp_path / "cut", CPU)
    train_steps(first, 5)
    first.save_checkpoint()
    second = open_run(made, dataset, tmp_path / "cut", CPU, resume=True)
    torch.manual_seed(7)
    expected = torch.random.get_rng_state()
    second.prime_kernels()
    assert torch.equal(torch.random.get_rng_state(), expected)
    assert vars(second.clock) == vars(first.clock)
    assert not second.network.fake_quant.active
    assert equal(second.network.state_dict(), first.network.state_dict())
    assert equal(second.averager.state(), first.averager.state())
    for one, other in zip(second.network.parameters(), first.network.parameters(), strict=True):
        for ours, theirs in zip(second.optimizers, first.optimizers, strict=True):
            assert equal(ours.state.get(one, {}), theirs.state.get(other, {}))
            assert len(ours.state) == len(theirs.state)
    train(second, Watcher())
    assert equal(load_weights(tmp_path / "cut").state, load_weights(tmp_path / "whole").state)


class Places(TorchDispatchMode):
    """Remembers on which devices tensors are made."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if not func.is_view:  # `detach` makes nothing.
            self.seen |= {
                tensor.device.type for tensor in tree_leaves(made) if isinstance(tensor, torch.Tensor)
            }
        return made


def test_what_priming_sets_aside_takes_no_memory_of_the_device() -> None:
    with FakeTensorMode():  # One needs no such device for it.
        network = torch.nn.Module()
        network.weight = torch.nn.Parameter(torch.zeros(3, device="cuda"))
        optimizer = torch.optim.SGD(network.parameters(), momentum=0.9)
        optimizer.state[network.weight]["momentum_buffer"] = torch.zeros(3, device="cuda")
        with Places() as places:
            set_aside(network, [optimizer])
    assert places.seen == {"cpu"}


class Counting(Team):
    """A team of one that counts its meetings."""

    meetings = 0

    def meet(self) -> None:
        self.meetings += 1


def test_compiled_code_is_made_for_fake_quantization_too(dataset: Dataset, tmp_path: Path) -> None:
    made = recipe("qat.enabled=true", "qat.grid=int6", "qat.threshold=0.6")
    run, seen = open_run(made, dataset, tmp_path / "run", CPU), []

    def compiled(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append(run.network.fake_quant.active)
        return run.network(inputs, targets)

    run.forward = compiled
    # Compiling may take longer on one rank than on another, so they meet after each kind.
    run.team = Counting()
    run.prime_kernels()
    assert seen == [False, False, True, True]
    assert run.team.meetings == 2
    run.clock.step, run.clock.fake_quant_from = 5, 4
    seen.clear()
    run.prime_kernels()
    assert seen == [True, True]
