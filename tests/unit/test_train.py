"""The training loop on a tiny model: schedules take effect, resuming is exact, priming leaves no trace."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pgolf.compress.weights import load_weights
from pgolf.data.dataset import Dataset
from pgolf.errors import PgolfError
from pgolf.evaluate.evaluate import EvalResult
from pgolf.recipe.recipe import Recipe, load_recipe
from pgolf.runs.folder import open_run
from pgolf.train.loop import train
from pgolf.train.metrics import Metrics, read_metrics, steps_per_reading
from pgolf.train.run import Run
from tests.unit.stand_ins import random_dataset

CPU = torch.device("cpu")
TINY = [
    *("model.layers=2", "model.width=16", "model.heads=2", "model.kv_heads=1", "model.mlp_hidden=16"),
    *("model.vocab_size=300", "model.xsa_last=1", "model.bigram.buckets=16", "model.bigram.width=8"),
    *("train.sequence_length=16", "train.batch_tokens=64", "train.micro_batches=2", "train.warmup_steps=0"),
    *("train.steps=6", "train.warmdown_steps=4", "train.validate_every=0", "train.checkpoint_every=0"),
    *("qat.enabled=false", "evaluate.stride=8", "ttt.chunk_tokens=64"),
]


class Watcher:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def step(self, step: int, loss: float, tokens_per_second: float) -> None: ...

    def validation(self, step: int, result: EvalResult) -> None: ...

    def evaluation(self, what: str, done: int, total: int) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)


def recipe(*settings: str) -> Recipe:
    return load_recipe("seed_456", [*TINY, *settings])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return random_dataset(tmp_path_factory.mktemp("data"))


def weights_after(recipe: Recipe, dataset: Dataset, folder: Path) -> dict[str, torch.Tensor]:
    train(open_run(recipe, dataset, folder, CPU), Watcher())
    return load_weights(folder).state


def weights_after_a_cut(
    recipe: Recipe, dataset: Dataset, folder: Path, steps: int
) -> dict[str, torch.Tensor]:
    """Of a run that another process continues after so many steps."""
    first = open_run(recipe, dataset, folder, CPU)
    train_steps(first, steps)
    first.save_checkpoint()
    train(open_run(recipe, dataset, folder, CPU, resume=True), Watcher())
    return load_weights(folder).state


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", ["none", "ema", "swa", "swa_of_ema"])
def test_a_resumed_run_ends_with_the_same_weights(dataset: Dataset, tmp_path: Path, kind: str) -> None:
    made = recipe(
        f'average.kind="{kind}"',
        *("average.every=1", "average.start_scale=0.9", "average.decay=0.7"),
        *("qat.enabled=true", "qat.threshold=0.6", "qat.soft_round=true", "qat.delay_steps=0"),
    )
    whole = weights_after(made, dataset, tmp_path / "whole")
    first = open_run(made, dataset, tmp_path / "cut", CPU)
    train_steps(first, 5)
    first.save_checkpoint()
    train_steps(first, 1)  # lost with the process
    second = open_run(made, dataset, tmp_path / "cut", CPU, resume=True)
    assert second.clock.step == 5
    assert second.clock.fake_quant_from == 4
    train(second, Watcher())
    assert equal(load_weights(tmp_path / "cut").state, whole)
    steps = [
        entry["step"] for entry in read_metrics(tmp_path / "cut" / "metrics.jsonl") if "train_loss" in entry
    ]
    assert steps == [1, 2, 3, 4, 5, 6]


def train_steps(run: Run, count: int) -> None:
    """Advance a run by some steps, as the loop does, without ending it."""
    goal = run.clock.step + count

    class Enough(Exception):
        pass

    class Stopper(Watcher):
        def step(self, step: int, loss: float, tokens_per_second: float) -> None:
            if step == goal:
                raise Enough

    with pytest.raises(Enough):
        train(run, Stopper())


class Reads(TorchDispatchMode):
    """Counts what would wait for a device: tensors turned into numbers, and shapes that depend on values."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.count = 0
        for name in ("cpu", "numpy", "tolist", "__array__"):
            monkeypatch.setattr(torch.Tensor, name, self._counting(getattr(torch.Tensor, name)))

    def _counting(self, method: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return method(*args, **kwargs)

        return counted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func._schema.name.removeprefix("aten::") in self.WAITING
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("together", [1, 3, 16])
@pytest.mark.parametrize(
    "settings",
    [
        ("average.kind=swa_of_ema", "average.every=1", "average.start_scale=0.9"),
        ("qat.enabled=true", "qat.threshold=0.9", "qat.soft_round=true", "optim.newton_schulz=polar_express"),
    ],
)
def test_a_step_reads_nothing_but_losses_some_steps_together(
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: tuple[str, ...],
    together: int,
) -> None:
    run = open_run(recipe(*settings), dataset, tmp_path / "run", CPU)
    assert run.metrics.steps_per_reading == steps_per_reading(CPU) == 1
    assert steps_per_reading(torch.device("cuda")) > 1
    run.metrics.steps_per_reading = together  # as if on a device
    reads, seen = Reads(monkeypatch), []

    class Counting(Watcher):
        def step(self, step: int, loss: float, tokens_per_second: float) -> None:
            seen.append(reads.count)

    with reads:
        train(run, Counting())
    # Validation reads too, before the first step and after the last; between them there are the losses alone.
    expected = {1: [1, 2, 3, 4, 5], 3: [0, 3, 3, 3, 6], 16: [0, 0, 0, 0, 0]}[together]
    assert [count - seen[0] for count in seen[1:]] == expected


def test_batches_prepared_ahead_train_the_same(dataset: Dataset, tmp_path: Path) -> None:
    made = recipe("train.warmup_steps=2")
    plain = weights_after(made, dataset, tmp_path / "plain")
    run = open_run(made, dataset, tmp_path / "ahead", CPU)
    run.batches.ahead = 2  # as on a device
    seen: list[bool] = []

    class Looking(Watcher):
        def step(self, step: int, loss: float, tokens_per_second: float) -> None:
            seen.append(any(thread.name.startswith("batches") for thread in threading.enumerate()))

    train(run, Looking())
    assert seen == [True] * 6
    assert not any(thread.name.startswith("batches") for thread in threading.enumerate())
    assert equal(plain, load_weights(tmp_path / "ahead").state)


def test_priming_leaves_no_trace(dataset: Dataset, tmp_path: Path) -> None:
    plain = weights_after(recipe("train.seed=3"), dataset, tmp_path / "plain")
    primed = weights_after(recipe("train.seed=3", "train.warmup_steps=2"), dataset, tmp_path / "primed")
    assert equal(plain, primed)
    assert not equal(plain, weights_after(recipe("train.seed=4"), dataset, tmp_path / "other"))


@pytest.mark.parametrize("delay", [0, 1])
def test_fake_quantization_starts_when_the_schedule_says(
    dataset: Dataset, tmp_path: Path, delay: int
) -> None:
    # Scales before steps 0 to 5 are 1, 1, 1, 0.75, 0.5, 0.25: the first below 0.6 comes before step 4.
    made = recipe("qat.enabled=true", "qat.threshold=0.6", f"qat.delay_steps={delay}")
    run, watcher = open_run(made, dataset, tmp_path / "run", CPU), Watcher()
    seen: list[bool] = []
    original = run.accumulate_gradients

    def recording(step: int) -> torch.Tensor:
        seen.append(run.network.fake_quant.active)
        return original(step)

    run.accumulate_gradients = recording  # type: ignore[method-assign]
    train(run, watcher)
    assert seen == [step >= 4 + delay for step in range(6)]
    assert watcher.notes == [f"fake quantization from step {4 + delay} on"]


LOOP = ("model.loop.last=1", "model.loop.passes=4", "model.loop.start_fraction=0.5", "model.skip=gated")


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        ((), [1, 1, 1, 4, 4, 4]),
        (("model.loop.curriculum=[2,3,4]",), [1, 1, 1, 2, 3, 4]),
        (("model.loop.curriculum=[1,4]", "model.loop.start_fraction=0"), [1, 1, 1, 4, 4, 4]),
    ],
)
def test_training_passes_through_the_loop_as_often_as_the_recipe_says_and_evaluation_always_does(
    dataset: Dataset, tmp_path: Path, settings: tuple[str, ...], passes: list[int]
) -> None:
    made = recipe(*LOOP, *settings, "train.validate_every=1")
    run, seen, evaluated = open_run(made, dataset, tmp_path / "run", CPU), [], set()
    original, whole = run.network.hidden, len(run.network.schedule)

    def watching(tokens: torch.Tensor, *others: Any, **named: Any) -> torch.Tensor:
        if run.network.training:
            seen.append(len(run.network.schedule) // 2)
        else:
            evaluated.add(len(run.network.schedule))
        return original(tokens, *others, **named)

    run.network.hidden = watching  # type: ignore[method-assign]
    run.prime_kernels = lambda: None  # type: ignore[method-assign]
    train(run, Watcher())
    assert seen == [count for count in passes for _ in range(2)], "two micro-batches a step"
    assert evaluated == {whole} == {8}
    assert load_weights(tmp_path / "run").recipe.model.loop.passes == 4


def test_a_run_cut_before_its_loop_begins_goes_on_as_if_it_had_not_been(
    dataset: Dataset, tmp_path: Path
) -> None:
    whole = weights_after(recipe(*LOOP), dataset, tmp_path / "whole")
    assert equal(whole, weights_after_a_cut(recipe(*LOOP), dataset, tmp_path / "cut", 2))
    other = recipe(*LOOP, "model.loop.start_fraction=0")
    assert not equal(whole, weights_after(other, dataset, tmp_path / "other"))


def test_compiled_code_is_made_for_every_number_of_passes_to_come(dataset: Dataset, tmp_path: Path) -> None:
    fake = ("qat.enabled=true", "qat.grid=int6", "qat.threshold=0.6")
    for settings, expected in (
        ((), [(False, 1), (False, 2), (False, 4)]),
        (fake, [(False, 1), (True, 1), (False, 2), (True, 2), (False, 4), (True, 4)]),
    ):
        made = recipe(*LOOP, "model.loop.curriculum=[2,4]", *settings)
        run, seen = open_run(made, dataset, tmp_path / f"run{len(settings)}", CPU), []

        def compiled(inputs: torch.Tensor, targets: torch.Tensor, run: Run = run, seen: Any = seen) -> Any:
            seen.append((run.network.fake_quant.active, len(run.network.schedule) // 2))
            return run.network(inputs, targets)

        run.forward = compiled
        run.prime_kernels()
        assert seen[::2] == expected
        seen.clear()
        run.clock.step, run.clock.fake_quant_from = 5, 4 if settings else -1
        run.prime_kernels()
        assert seen[::2] == [(bool(settings), 4)]


LENGTHS = (
    *("train.length_schedule=[[4, 0.2], [8, 0.5], [16, 1.0]]", "train.warmdown_steps=0"),
    *("train.warmdown_fraction=0.5", "train.lr_floor=0.4", "optim.muon_weight_decay_taper=0.5"),
    *("optim.muon_weight_decay_taper_start=0.4", "optim.muon_row_norm=normuon", "average.window=0.5"),
    *("average.decay=0", "average.kind=ema"),
)


def test_sequences_grow_with_the_same_tokens_and_the_rate_starts_low_at_each_change(
    dataset: Dataset, tmp_path: Path
) -> None:
    run, watcher, seen = open_run(recipe(*LENGTHS), dataset, tmp_path / "run", CPU), Watcher(), []
    original = run.forward

    def watching(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append((inputs.clone(), targets))
        return original(inputs, targets)

    run.forward = watching
    run.prime_kernels = lambda: None  # type: ignore[method-assign]
    train(run, watcher)
    assert [inputs.shape for inputs, _ in seen[::2]] == [(8, 4)] * 2 + [(4, 8)] * 2 + [(2, 16)] * 2
    plain = run.batches.loader
    for index, (inputs, targets) in enumerate(seen):
        expected = plain.batch(*divmod(index, 2))
        assert torch.equal(inputs.flatten(), expected[0].flatten())
        assert torch.equal(targets.flatten(), expected[1].flatten())
    entries = [entry for entry in read_metrics(tmp_path / "run" / "metrics.jsonl") if "train_loss" in entry]
    scales = [1, 1, 1 / 32, 2 / 32, 2 / 3 / 32, 0.4 * 2 / 32]
    assert [entry["lr_scale"] for entry in entries] == pytest.approx(scales)
    assert watcher.notes == [f"sequences of {n} targets from step {at} on" for n, at in ((8, 2), (16, 4))]
    assert run.optimizers[0].param_groups[0]["weight_decay"] == pytest.approx(
        run.recipe.optim.muon_weight_decay * (1 - 0.5 * (5 / 6 - 0.4) / 0.6)
    )


@pytest.mark.parametrize("cut", [3, 5])
def test_a_run_cut_while_sequences_grow_goes_on_as_if_it_had_not_been(
    dataset: Dataset, tmp_path: Path, cut: int
) -> None:
    whole = weights_after(recipe(*LENGTHS), dataset, tmp_path / "whole")
    assert equal(whole, weights_after_a_cut(recipe(*LENGTHS), dataset, tmp_path / "cut", cut))
    other = recipe(*LENGTHS, "train.length_schedule=[[8, 0.5], [16, 1.0]]")
    assert not equal(whole, weights_after(other, dataset, tmp_path / "other"))


def test_compiled_code_is_made_for_every_length_to_come(dataset: Dataset, tmp_path: Path) -> None:
    fake = ("qat.enabled=true", "qat.grid=int6", "qat.threshold=0.6")
    for settings, kinds in (((), (False,)), (fake, (False, True))):
        run, seen = open_run(recipe(*LENGTHS, *settings), dataset, tmp_path / f"run{len(kinds)}", CPU), []

        def compiled(inputs: torch.Tensor, targets: torch.Tensor, run: Run = run, seen: Any = seen) -> Any:
            seen.append((run.network.fake_quant.active, inputs.size(1)))
            return run.network(inputs, targets)

        run.forward = compiled
        run.prime_kernels()
        assert seen[::2] == [(kind, length) for length in (4, 8, 16) for kind in kinds]
        seen.clear()
        run.clock.step, run.clock.fake_quant_from = 5, 4 if settings else -1
        run.prime_kernels()
        assert seen[::2] == [(bool(settings), 16)]


def test_a_shrunken_frontier_trains(dataset: Dataset, tmp_path: Path) -> None:
    small = (
        *(
            "model.vocab_size=320",
            "model.width=32",
            "model.heads=4",
            "model.kv_heads=2",
            "model.mlp_hidden=64",
        ),
        *("model.rope_dims=4", "model.window_gate.width=4", "model.window_smear.width=4", "train.steps=12"),
        *("train.length_schedule=[[8, 0.1], [16, 0.7], [32, 1.0]]", "train.sequence_length=32"),
        *("train.batch_tokens=128", "train.micro_batches=2", "train.validate_every=0", "evaluate.stride=8"),
        "ttt.lora.rank=4",
    )
    run = open_run(load_recipe("frontier", small), dataset, tmp_path / "run", CPU)
    train(run, Watcher())
    state = load_weights(tmp_path / "run").state
    assert all(bool(tensor.isfinite().all()) for tensor in state.values())
    assert bool(state["loop.vectors"].any()) and run.length == 32 and run.passes == 3


def test_soft_rounding_sharpens_from_1_to_16(dataset: Dataset, tmp_path: Path) -> None:
    run = open_run(
        recipe("qat.enabled=true", "qat.threshold=0.5", "qat.soft_round=true"), dataset, tmp_path / "r", CPU
    )
    for scale, alpha in ((0.49999, 1.0), (0.25, 8.5), (0.0, 16.0)):
        run.switch_fake_quantization(scale, Watcher())
        assert run.network.fake_quant.alpha.item() == pytest.approx(alpha, abs=1e-2)


def test_the_wall_clock_ends_training(dataset: Dataset, tmp_path: Path) -> None:
    made = recipe("train.steps=100000", "train.wallclock_seconds=0.5", "train.warmdown_steps=3")
    result = train(open_run(made, dataset, tmp_path / "run", CPU), Watcher())
    assert 1 <= result.steps < 100000
    assert result.seconds >= 0.5
    scales = [e["lr_scale"] for e in read_metrics(tmp_path / "run" / "metrics.jsonl") if "train_loss" in e]
    assert scales[-1] < 1.0


def test_a_loss_that_is_no_number_stops_the_run(dataset: Dataset, tmp_path: Path) -> None:
    run = open_run(recipe(), dataset, tmp_path / "run", CPU)
    with torch.no_grad():
        run.network.token_embedding.weight.fill_(float("nan"))
    with pytest.raises(
        PgolfError, match=r"validation after step 0: .*not finite numbers.*lower the optim\.\*_lr"
    ):
        train(run, Watcher())
    run.validate = lambda asked: None  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(PgolfError, match="training loss became nan in step 1"):
        train(run, Watcher())


def test_a_full_disk_stops_the_run_with_one_line(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(recipe(), dataset, tmp_path / "run", CPU)
    plain = Path.open

    def no_space(path: Path, mode: str = "r", **options: object) -> object:
        if mode == "a":
            raise OSError(errno.ENOSPC, "No space left on device")
        return plain(path, mode, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", no_space)
    with pytest.raises(PgolfError, match=r"metrics\.jsonl: the disk is full"):
        train(run, Watcher())


def test_gradients_are_clipped_to_a_global_norm(dataset: Dataset, tmp_path: Path) -> None:
    run = open_run(recipe("train.grad_clip=0.001", "train.steps=1"), dataset, tmp_path / "run", CPU)
    norms: list[float] = []
    step = run.optimizers[0].step

    def recording() -> None:
        squares = [p.grad.square().sum().item() for p in run.network.parameters() if p.grad is not None]
        norms.append(sum(squares) ** 0.5)
        step()

    run.optimizers[0].step = recording  # type: ignore[assignment, method-assign]
    train(run, Watcher())
    assert norms[0] == pytest.approx(0.001, rel=1e-2)


def test_metrics_forget_what_a_crash_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path, 0, 64)
    for step in (1, 2, 3):
        metrics.step(step, torch.tensor(float(step)), 1.0)
    with path.open("a") as file:
        file.write('{"step": 4, "train_lo')
    assert [entry["step"] for entry in read_metrics(path)] == [1, 2, 3]
    Metrics(path, 2, 64)
    assert [entry["step"] for entry in read_metrics(path)] == [1, 2]
