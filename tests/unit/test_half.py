"""float16 where a GPU has no bfloat16, and devices that know neither, as far as a CPU can try them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pgolf.data.dataset import Dataset
from pgolf.errors import PgolfError
from pgolf.evaluate.passes import fitting_batch
from pgolf.model.gpt import build_model
from pgolf.optim.place import place
from pgolf.runs.folder import open_run
from pgolf.runtime.device import autocast, compiled, half_format, pick_device
from pgolf.train.metrics import read_metrics
from pgolf.train.run import Run
from tests.unit.stand_ins import random_dataset
from tests.unit.test_train import CPU, equal, recipe, train_steps, weights_after, weights_after_a_cut


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return random_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture
def float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU as a GPU without bfloat16."""
    for user in ("runtime.device", "train.run", "optim.place", "optim.newton_schulz"):
        module = importlib.import_module(f"pgolf.{user}")
        monkeypatch.setattr(module, "half_format", lambda device: torch.float16)


def losses(folder: Path) -> list[float]:
    return [entry["train_loss"] for entry in read_metrics(folder / "metrics.jsonl") if "train_loss" in entry]


@pytest.mark.parametrize(("supported", "format"), [(True, torch.bfloat16), (False, torch.float16)])
def test_old_gpus_have_float16(monkeypatch: pytest.MonkeyPatch, supported: bool, format: torch.dtype) -> None:
    def answer(including_emulation: bool = True) -> bool:
        return including_emulation or supported

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", answer)
    assert half_format.__wrapped__(torch.device("cuda", 3)) == format
    assert half_format(CPU) is half_format(torch.device("mps")) is None


def test_training_in_float16_follows_float32(
    dataset: Dataset, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    made = recipe("train.grad_clip=0.5")
    weights_after(made, dataset, tmp_path / "float32")
    request.getfixturevalue("float16")
    formats = set()
    run = open_run(made, dataset, tmp_path / "float16", CPU)
    for module in run.network.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda module, given, made: formats.add(made.dtype))
    train_steps(run, 5)
    assert torch.float16 in formats
    assert {weight.dtype for weight in run.network.parameters()} == {torch.float32}
    expected, found = losses(tmp_path / "float32")[:5], losses(tmp_path / "float16")
    assert found == pytest.approx(expected, abs=2e-3) and found != expected


@pytest.mark.usefixtures("float16")
def test_a_step_that_overflows_is_left_out(dataset: Dataset, tmp_path: Path) -> None:
    run = open_run(recipe(), dataset, tmp_path / "run", CPU)
    run.scaler.load_state_dict(run.scaler.state_dict() | {"scale": 2.0**30})
    before = {name: weight.clone() for name, weight in run.network.state_dict().items()}
    train_steps(run, 1)
    assert equal(before, run.network.state_dict())
    assert run.scaler.get_scale() == 2.0**29
    run.scaler.load_state_dict(run.scaler.state_dict() | {"scale": 2.0**9})
    train_steps(run, 1)
    assert run.scaler.get_scale() == 2.0**9
    assert not equal(before, run.network.state_dict())


@pytest.mark.usefixtures("float16")
def test_the_scale_survives_an_interruption(dataset: Dataset, tmp_path: Path) -> None:
    made = recipe("train.warmup_steps=2")
    whole = weights_after(made, dataset, tmp_path / "whole")
    assert equal(weights_after_a_cut(made, dataset, tmp_path / "cut", 3), whole)
    run = open_run(made, dataset, tmp_path / "more", CPU)
    run.scaler.load_state_dict(run.scaler.state_dict() | {"scale": 2.0**9})
    run.prime_kernels()
    train_steps(run, 2)
    run.save_checkpoint()
    again = open_run(made, dataset, tmp_path / "more", CPU, resume=True)
    assert again.scaler.state_dict() == run.scaler.state_dict()
    assert (again.scaler.get_scale(), again.scaler.state_dict()["_growth_tracker"]) == (2.0**9, 2)


@pytest.mark.usefixtures("float16")
def test_what_learns_without_a_scale_computes_in_float32() -> None:
    a = torch.ones(2, 2)
    with autocast(CPU):
        assert (a @ a).dtype == torch.float16
    with autocast(CPU, learning=True):
        assert (a @ a).dtype == torch.float32


class NoDouble(TorchDispatchMode):
    """As Apple's GPUs: no float64, and here no float16 either; the device stands for theirs."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for each in tree_leaves(found):
            if isinstance(each, torch.Tensor) and each.device.type == "meta":
                assert each.dtype in (torch.float32, torch.int64, torch.int32, torch.bool), (func, each.dtype)
        return found


def test_an_apple_gpu_computes_in_float32_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(PgolfError, match=r"--device mps: .* no Apple GPU"):
        pick_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    device = pick_device("mps")
    assert device == torch.device("mps") and pick_device() != device
    network = build_model(recipe().model, 0)
    assert compiled(network, device, True) is network
    with autocast(device):
        assert not torch.is_autocast_enabled("mps")
    assert fitting_batch(recipe().model, 16, 1 << 32, "mps") >= 1


def test_a_step_needs_no_number_format_that_apple_gpus_lack(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)  # It does not know the stand-in.
    with NoDouble():
        run = Run(recipe("train.grad_clip=0.5"), dataset, tmp_path, torch.device("meta"))
        place(run.network, run.recipe, run.device)
        assert run.accumulate_gradients(0).device.type == "meta"
        torch.nn.utils.clip_grad_norm_(run.network.parameters(), 0.5)
        for group in (group for optimizer in run.optimizers for group in optimizer.param_groups):
            group["fused"] = False  # The stand-in has no such kernel.
        run._update()
        run.averager.update(run.network.state_dict(), 1, 1.0)
