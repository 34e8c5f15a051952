"""The budget solver: just under the cap, never over it, and precision where the loss minds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pgolf.compress import budget
from pgolf.compress.calibrate import Calibration, Sensitivity, calibrate
from pgolf.compress.container import read_artifact
from pgolf.compress.pack import pack
from pgolf.compress.report import PackReport
from pgolf.compress.stored import Quantized, dequantize_state
from pgolf.errors import PgolfError
from pgolf.model.gpt import GPT
from pgolf.recipe.recipe import load_recipe
from pgolf.recipe.sections import CompressSection
from tests.unit.stand_ins import small_model

RECIPE = load_recipe("tiny", ["model.layers=3", "model.xsa_last=2", "model.width=64", "model.mlp_hidden=256"])
GPTQ = CompressSection()


@pytest.fixture(scope="module")
def network() -> GPT:
    return small_model(RECIPE, spread=0.05)


@pytest.fixture(scope="module")
def calibration(network: GPT) -> Calibration:
    tokens = torch.randint(320, (16, 65), generator=torch.Generator().manual_seed(1))
    return calibrate(network, tokens, "train")


@pytest.fixture(scope="module")
def smallest(
    network: GPT, calibration: Calibration, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PackReport, Path]:
    """Packed under a cap of 80,000 bytes."""
    path = tmp_path_factory.mktemp("packed") / "m.pgolf"
    return pack(network.state_dict(), RECIPE, "", path, 80_000, calibration), path


@pytest.mark.parametrize("cap", [80_000, 100_000, 135_000, 175_000])
def test_the_artifact_lands_just_under_the_cap(
    network: GPT, calibration: Calibration, smallest: tuple[PackReport, Path], tmp_path: Path, cap: int
) -> None:
    report, path = smallest
    if cap > 80_000:
        path = tmp_path / "m.pgolf"
        report = pack(network.state_dict(), RECIPE, "", path, cap, calibration)
    assert 0.998 * cap <= report.total_bytes <= cap
    assert path.stat().st_size + report.code_bytes == report.total_bytes
    artifact = read_artifact(path)
    assert artifact.origin["calibration"] == calibration.source
    assert artifact.origin["scheme"] == "budget"


def test_without_calibration_it_lands_as_well(network: GPT, tmp_path: Path) -> None:
    report = pack(network.state_dict(), RECIPE, "", tmp_path / "m.pgolf", 115_000)
    assert 0.998 * 115_000 <= report.total_bytes <= 115_000
    assert all(tensor.predicted is None and tensor.measured is None for tensor in report.tensors)


def test_a_cap_that_the_model_cannot_use_gives_the_finest_grid(
    network: GPT, calibration: Calibration, tmp_path: Path
) -> None:
    report = pack(network.state_dict(), RECIPE, "", tmp_path / "m.pgolf", 4_000_000, calibration)
    assert report.total_bytes < 1_000_000
    stored = read_artifact(tmp_path / "m.pgolf").stored
    widths = [value.bits for value in stored.values() if isinstance(value, Quantized)]
    assert sum(width == 8 for width in widths) > 0.9 * len(widths)


def test_a_cap_that_is_too_small_is_an_error(network: GPT, tmp_path: Path) -> None:
    with pytest.raises(PgolfError, match=r"cap of 25,000 bytes; the smallest total reached is [\d,]+"):
        pack(network.state_dict(), RECIPE, "", tmp_path / "m.pgolf", 25_000)
    assert list(tmp_path.iterdir()) == []


def test_the_report_explains_every_tensor(
    network: GPT, calibration: Calibration, smallest: tuple[PackReport, Path]
) -> None:
    report, path = smallest
    assert [tensor.name for tensor in report.tensors] == list(network.state_dict())
    assert sum(tensor.bytes for tensor in report.tensors) == pytest.approx(report.model_bytes, rel=0.05)
    named = {tensor.name: tensor for tensor in report.tensors}
    for name in calibration.sensitivities:
        if name.endswith("gate.weight"):
            continue  # kept as floats
        tensor = named[name]
        assert tensor.bits_per_weight == pytest.approx(8 * tensor.bytes / tensor.entries)
        assert tensor.predicted is not None
        assert tensor.predicted > 0
        assert tensor.measured is not None
    predicted = sum(tensor.predicted or 0.0 for tensor in report.tensors)
    # The loss of the whole artifact against the model's own labels, which is what is predicted.
    state = dequantize_state(read_artifact(path).stored)
    with torch.no_grad():
        inputs = calibration.tokens[:, :-1]
        before = network.eval()(inputs).log_softmax(dim=-1)
        packed = GPT(RECIPE.model).eval()
        packed.load_state_dict(state)
        after = packed(inputs).log_softmax(dim=-1)
    happened = float((before.exp() * (before - after)).sum(dim=-1).mean())
    assert 0.4 < predicted / happened < 2.5


def test_precision_by_sensitivity_loses_less_than_even_precision(
    network: GPT, calibration: Calibration, smallest: tuple[PackReport, Path], tmp_path: Path
) -> None:
    pack(network.state_dict(), RECIPE, "", tmp_path / "m.pgolf", 80_000)
    losses = {}
    for label, path in (("known", smallest[1]), ("unknown", tmp_path / "m.pgolf")):
        state = read_artifact(path).state
        losses[label] = sum(
            sensitivity.loss(network.state_dict()[name] - state[name])
            for name, sensitivity in calibration.sensitivities.items()
        )
    assert losses["known"] < losses["unknown"] / 3


def test_rows_and_columns_that_count_get_finer_steps() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    rows = torch.tensor([1.0, 4.0] * 4)
    columns = torch.diag(torch.tensor([1.0, 16.0] * 32))
    target = budget.prepare(
        {"cores.0.mlp.up.weight": weight}, {"cores.0.mlp.up.weight": Sensitivity([rows], [columns])}, GPTQ
    )["cores.0.mlp.up.weight"]
    assert torch.allclose(target.rows[0::2] / target.rows[1::2], torch.full((4,), 2.0))
    assert torch.allclose(target.columns[0::2] / target.columns[1::2], torch.full((32,), 4.0), rtol=0.25)


def test_fixed_point_of_the_grid() -> None:
    exact = torch.tensor([1.0, 1.25, 1.5, 1.75, 2.0, 2.0**-9, 96.0])
    for up in (0.0, 0.5, 1.0):
        assert torch.equal(budget.coarse(exact, up), exact)
    between = torch.tensor([1.1, 1.3, 3.9, 0.13])
    assert torch.equal(budget.coarse(between, 0.0), torch.tensor([1.0, 1.25, 3.5, 0.125]))
    assert torch.equal(budget.coarse(between, 1.0), torch.tensor([1.25, 1.5, 4.0, 0.15625]))


def test_a_low_rank_correction_lowers_the_error(network: GPT, calibration: Calibration) -> None:
    name = "cores.1.mlp.down.weight"
    weight, sensitivity = network.get_parameter(name).detach(), calibration.sensitivities[name]
    target = budget.prepare({name: weight}, calibration.sensitivities, GPTQ)[name]
    coarse = budget.round_target(target, 2.0 * budget.first_guess({name: target}, 2.0 * weight.numel()))
    losses = [sensitivity.loss(weight - coarse.dequantize())]
    for rank in (4, 16):
        corrected = budget.low_rank_correction(target, coarse, sensitivity, rank)
        assert corrected.correction is not None
        assert corrected.correction[0].codes.shape == (rank, weight.size(0))
        losses.append(sensitivity.loss(weight - corrected.dequantize()))
    assert losses[2] < losses[1] < losses[0]


def test_packing_with_corrections_reads_back(network: GPT, calibration: Calibration, tmp_path: Path) -> None:
    recipe = RECIPE.with_overrides(["compress.low_rank=2"])
    report = pack(network.state_dict(), recipe, "", tmp_path / "m.pgolf", 100_000, calibration)
    assert 0.998 * 100_000 <= report.total_bytes <= 100_000
    stored = read_artifact(tmp_path / "m.pgolf").stored
    assert all(value.correction is not None for value in stored.values() if isinstance(value, Quantized))


@given(st.floats(-8, 8), st.floats(0.3, 3.0), st.integers(2000, 200_000))
def test_the_search_lands_where_sizes_allow_it(place: float, slope: float, cap: int) -> None:
    sizes = []

    def build(fineness: float) -> tuple[int, int]:
        sizes.append(int(cap * 2 ** (-slope * (torch.tensor(fineness).log2().item() - place) / 4)))
        return sizes[-1], sizes[-1]

    found = budget.search(build, 1.0, cap, 0.0015, cap)
    assert found is not None
    assert 0.998 * cap - 2 <= found <= cap
    assert found == max(size for size in sizes if size <= cap)


def test_steps_of_nothing_but_zeros_are_those_of_the_others() -> None:
    weight = torch.from_numpy(np.random.RandomState(0).normal(size=(12, 40))).float()
    weight[3], weight[:, 7] = 0, 0
    moments = Sensitivity([torch.linspace(0.1, 2, 12)], [torch.eye(40) * torch.linspace(0.2, 3, 40)])
    name = "cores.0.mlp.up.weight"
    found = budget.round_target(budget.prepare({name: weight}, {name: moments}, CompressSection())[name], 0.5)
    assert found.columns is not None
    used = [row for row in range(12) if row != 3]
    assert found.scale[3] == found.scale[used].median()
    assert found.columns[7] == torch.cat((found.columns[:7], found.columns[8:])).median()
    assert torch.equal(found.dequantize()[3], torch.zeros(40))
