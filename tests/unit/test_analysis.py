"""The analysis of a study: groups, terms, tests, curves, sentences."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pgolf.report.findings import Analysis, Table
from pgolf.study.analysis import analyse
from pgolf.study.cells import Cell
from pgolf.study.terms import EVALUATIONS

# Nats per target of each evaluation, relative to the first.
SHIFTS = {"raw": 0.0, "float": -0.02, "packed": 0.03, "sliding": -0.01, "ttt": -0.06}
NOISE = {1: -0.001, 2: 0.0002, 3: 0.0008}
BITS = 0.5


def result(loss: float, size: int = 999_000, evaluations: tuple[str, ...] = EVALUATIONS) -> dict[str, Any]:
    scores = {
        name: {
            "val_loss": loss + SHIFTS[name],
            "val_bpb": BITS * (loss + SHIFTS[name]),
            "targets": 10,
            "bytes": 30,
        }
        for name in evaluations
    }
    return {"evaluations": scores, "pack": {"total_bytes": size}, "train": {"steps": 10}}


def cell(changes: Mapping[str, Any], seed: int, loss: float, folder: Path = Path("none"), **how: Any) -> Cell:
    name = "-".join([*(f"{value}" for value in changes.values()), str(seed)])
    return Cell(name, changes, seed, folder, "finished", result(loss, **how), None)


def table(found: Analysis, title: str) -> Table:
    return next(entry for entry in found.tables if entry.title.startswith(title))


def column(found: Table, name: str) -> list[Any]:
    return [row[list(found.columns).index(name)] for row in found.rows]


def steps_study() -> list[Cell]:
    """Losses over steps that diminish, three seeds with noise of their own at each."""
    cells = []
    for index, (steps, loss) in enumerate({1000: 3.5, 2000: 3.4, 4000: 3.33, 8000: 3.28}.items()):
        for seed, noise in NOISE.items():
            own = noise * (1 if index % 2 else -0.7) + 0.0003 * ((seed + index) % 3)
            cells.append(cell({"train.steps": steps}, seed, loss + own, size=999_000 - index))
    return cells


def test_every_term_is_told_apart() -> None:
    found = analyse([cell({}, 1, 3.5)])
    means = table(found, "Every term, mean")
    terms = {name: column(means, name)[0] for name in means.columns}
    assert terms["raw float"] == pytest.approx(1.75)
    assert terms["averaging gain"] == pytest.approx(BITS * 0.02)
    assert terms["quantization gap"] == pytest.approx(BITS * 0.05)
    assert terms["sliding gain"] == pytest.approx(BITS * 0.04)
    assert terms["TTT gain"] == pytest.approx(BITS * 0.05)
    assert terms["bytes"] == 999_000
    assert any(
        said.startswith("base (one seed): from raw float 1.7500 to TTT 1.7200")
        and "quantization +0.0250" in said
        for said in found.statements
    )


def test_spread_over_seeds() -> None:
    found = analyse([cell({}, seed, 3.5 + noise) for seed, noise in ((1, 0.0), (2, 0.002), (3, 0.004))])
    assert column(table(found, "Every term, mean"), "TTT") == pytest.approx([BITS * 3.442])
    spreads = table(found, "Every term, standard deviation")
    assert column(spreads, "TTT") == pytest.approx([BITS * 0.002])
    # Every run has the same gain from TTT, whatever its level.
    assert column(spreads, "TTT gain") == pytest.approx([0.0], abs=1e-12)
    assert any(
        "standard deviation of 0.0010 TTT bits per byte (2 degrees of freedom)" in s for s in found.statements
    )


def test_one_seed_claims_nothing() -> None:
    found = analyse([cell({}, 1, 3.5), cell({"model.layers": 9}, 1, 3.4)])
    assert "model.layers=9: 0.0500 TTT bits per byte lower than base; one seed" in " ".join(found.statements)
    assert "Every cell has one seed" in found.statements[1]
    assert not any(", significant" in said or "as a record" in said for said in found.statements)
    assert column(table(found, "Against"), "p") == [None]
    assert column(table(found, "Record rule"), "record rule") == ["does not hold"]
    assert not any(entry.title.startswith("Every term, standard") for entry in found.tables)


def test_cells_are_tested_against_the_baseline_pair_by_pair() -> None:
    cells = [cell({}, seed, 3.5 + 10 * noise) for seed, noise in NOISE.items()]
    # Seeds differ by far more than the change, but the change shows within each seed.
    cells += [cell({"qat.enabled": True}, seed, 3.488 + 10.05 * noise) for seed, noise in NOISE.items()]
    cells += [cell({"model.smear": False}, seed, 3.5 - 10 * noise) for seed, noise in NOISE.items()]
    found = analyse(cells)
    tests = table(found, "Against the baseline: base")
    assert column(tests, "test") == ["paired", "paired"]
    assert column(tests, "difference")[0] == pytest.approx(-0.006, abs=1e-4)
    said = " ".join(found.statements)
    assert "qat.enabled=True: 0.0060 TTT bits per byte lower than base" in said
    assert "Holm-corrected for 2 tests" in said
    assert [
        entry.count("not significant") for entry in found.statements if entry.startswith("model.smear=False:")
    ] == [1]


def test_the_record_rule_is_in_nats() -> None:
    cells = [cell({}, seed, 3.5 + noise) for seed, noise in NOISE.items()]
    cells += [cell({"model.layers": 9}, seed, 3.49 + 0.9 * noise) for seed, noise in NOISE.items()]
    # In bits per byte this one is under 0.005 as well, and its 0.0049 nats are not enough.
    cells += [cell({"model.layers": 8}, seed, 3.4951 + 0.9 * noise) for seed, noise in NOISE.items()]
    found = analyse(cells)
    assert [said.split(":")[0] for said in found.statements if "as a record" in said] == [
        "model.layers=9 as a record over base"
    ]
    rule = table(found, "Record rule")
    assert column(rule, "improvement") == pytest.approx([0.01, 0.0049], abs=1e-6)
    assert column(rule, "record rule") == ["holds", "does not hold"]


def test_a_numeric_key_makes_a_curve() -> None:
    found = analyse(steps_study())
    titles = [curve.title for curve in found.curves]
    assert titles[:2] == [
        "TTT bits per byte over train.steps, power law",
        "TTT bits per byte over train.steps, saturation",
    ]
    first = found.curves[0]
    assert len(first.points) == 12
    assert first.log_x
    assert all(low <= y <= high for _, y, low, high in first.line)
    assert "levels off at" in first.note
    said = " ".join(found.statements)
    assert "TTT bits per byte falls throughout with train.steps" in said
    assert "the fall diminishes throughout" in said
    assert "3 of 3 differences of TTT bits per byte between neighbouring train.steps are significant" in said
    rates = table(found, "TTT bits per byte: rate")
    assert column(rates, "from") == [1000, 2000, 4000]
    assert column(rates, "change per 1,000 steps")[0] == pytest.approx(-0.05, abs=1e-3)


def test_the_base_takes_part_with_the_value_in_its_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("[train]\nsteps = 1000\nwarmdown_steps = 500\n")
    cells = [cell({}, 1, 3.5, tmp_path), *(cell({"train.steps": n}, 1, 3.5 - n / 1e5) for n in (2000, 4000))]
    said = " ".join(analyse(cells).statements)
    assert "at 1,000 to" in said
    assert "(3 values)" in said


def test_keys_that_change_together_are_one_series() -> None:
    steps = {9000: 4000, 12000: 5000, 15000: 6000}
    cells = [
        cell({"train.steps": n, "train.warmdown_steps": down}, 1, 3.5 - n / 1e5) for n, down in steps.items()
    ]
    said = " ".join(analyse(cells).statements)
    assert "with train.steps (with train.warmdown_steps): from" in said
    assert "too few points: 3 different x" in said


def test_a_grid_is_a_series_for_each_other_value() -> None:
    cells = [
        cell({"train.steps": n, "model.layers": layers}, 1, 4 - n / 1e5 - layers / 100)
        for n in (1000, 2000, 3000)
        for layers in (7, 9)
    ]
    titles = " ".join(curve.title for curve in analyse(cells).curves)
    assert "over train.steps at model.layers=7" in titles
    assert "over train.steps at model.layers=9" in titles
    assert "over model.layers" not in titles


def test_a_random_search_is_no_series() -> None:
    tried = ((0.01, 128), (0.03, 64), (0.02, 96), (0.05, 100))
    cells = [cell({"optim.matrix_lr": lr, "model.width": width}, 1, 3.5 - lr) for lr, width in tried]
    assert analyse(cells).curves == []


def test_one_thing_at_a_time_around_a_base(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(
        "[model]\nlayers = 7\n[train]\nsteps = 1000\nwarmdown_steps = 500\n"
    )
    cells = [cell({}, 1, 3.5, tmp_path)]
    cells += [cell({"train.steps": n}, 1, 3.5 - n / 1e5, tmp_path) for n in (2000, 4000)]
    cells += [cell({"model.layers": n}, 1, 3.5 - n / 100, tmp_path) for n in (9,)]
    titles = [curve.title for curve in analyse(cells).curves]
    assert "TTT bits per byte over train.steps" in titles
    assert not any("model.layers" in title for title in titles)


def test_rates_through_the_warmdown(tmp_path: Path) -> None:
    cells = []
    # The second run is off by a constant and bends a little less.
    for seed, validations in (
        (1, [2.6, 2.4, 2.3, 2.1, 1.7]),
        (2, [2.7, 2.5, 2.4, 2.19, 1.81]),
        (3, [2.5, 2.3, 2.2, 2.0, 1.61]),
    ):
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / "recipe.toml").write_text(
            "[train]\nsteps = 4000\nwarmdown_steps = 2000\nwallclock_seconds = 0.0\n"
        )
        lines = [{"step": 0, "val_loss": 14.0, "val_bpb": 7.0}, {"step": 1, "train_loss": 6.9}]
        lines += [
            {"step": step, "val_bpb": bpb}
            for step, bpb in zip((500, 1000, 2000, 3000, 4000), validations, strict=True)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        cells.append(cell({}, seed, 3.5, folder))
    found = analyse(cells)
    rates = table(found, "base: rate through the training")
    assert column(rates, "part") == ["before", "before", "warmdown", "warmdown"]
    assert column(rates, "change per 1,000 steps")[0] == pytest.approx(-0.4)
    # The runs fell by 0.4, 0.38 and 0.39 in the last thousand steps: what sets them apart otherwise cancels.
    assert column(rates, "±")[-1] == pytest.approx(0.01)
    said = next(entry for entry in found.statements if "warmdown" in entry)
    assert "-0.2000 per 1,000 steps before the warmdown (steps 500 to 2,000)" in said
    assert "the fall accelerates throughout" in said
    assert "2 of 2 differences of raw float bits per byte in the warmdown" in said
    assert "a significant change of rate" in said


def test_a_short_training_has_the_same_rates(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("[train]\nsteps = 20\nwarmdown_steps = 10\n")
    lines = [{"step": step, "val_bpb": 3.0 - step / 100} for step in (5, 10, 15, 20)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = analyse([cell({}, 1, 3.5, tmp_path)])
    assert column(table(found, "base: rate"), "change per 1,000 steps") == pytest.approx([-10.0] * 3)
    assert "-10.0000 per 1,000 steps in the warmdown (steps 10 to 20)" in " ".join(found.statements)


def test_means_are_of_the_same_seeds() -> None:
    part = cell({}, 2, 3.6, evaluations=("raw", "float", "packed"))
    means = table(analyse([cell({}, 1, 3.5), part]), "Every term, mean")
    assert column(means, "TTT") == [None]
    assert column(means, "packed") == pytest.approx([BITS * 3.58])


def test_failed_cells_are_named_and_left_out() -> None:
    failed = Cell("wide", {"model.width": 4096}, 1, Path("none"), "failed", None, "out of memory")
    waiting = Cell("late", {"model.width": 64}, 1, Path("none"), "waiting", None, None)
    found = analyse([cell({}, 1, 3.5), failed, waiting])
    assert found.statements[:2] == [
        "wide failed and is left out: out of memory",
        "late is not finished and is left out.",
    ]
    assert len(table(found, "Every term, every run").rows) == 1
    diverged = cell({"optim.matrix_lr": 9.0}, 1, math.nan)
    assert (
        analyse([cell({}, 1, 3.5), diverged]).statements[0].startswith("9.0-1 has a score that is no number")
    )
    assert "nothing to analyse" in analyse([failed]).statements[-1]


def test_the_score_is_the_last_that_all_have() -> None:
    cells = [cell({}, 1, 3.5), cell({"model.layers": 9}, 1, 3.4, evaluations=("raw", "float", "packed"))]
    found = analyse(cells)
    assert "0.0500 packed bits per byte lower than base" in " ".join(found.statements)
    assert column(table(found, "Every term, mean"), "TTT gain") == [pytest.approx(0.025), None]


def other_tokenizer(changes: Mapping[str, Any], seed: int, loss: float, bytes: int = 30) -> Cell:
    found = cell(changes, seed, loss)
    assert found.result is not None
    for score in found.result["evaluations"].values():
        score |= {"targets": 7, "bytes": bytes}
    return found


def test_losses_of_other_tokens_are_no_record_and_scores_of_other_text_are_not_compared() -> None:
    base = [cell({}, seed, 3.5 + noise) for seed, noise in NOISE.items()]
    less = [other_tokenizer({"model.vocab_size": 512}, seed, 3.0 - noise) for seed, noise in NOISE.items()]
    found = analyse([*base, *less])
    assert not any("as a record" in said for said in found.statements)
    assert column(table(found, "Record rule"), "record rule") == ["not asked"]
    assert column(table(found, "Against the baseline"), "p")[0] is not None, (
        "bits per byte of the same text compare"
    )
    shorter = [other_tokenizer({"data.x": 1}, seed, 3.0 - noise, bytes=20) for seed, noise in NOISE.items()]
    found = analyse([*base, *shorter])
    assert "data.x=1 scored other text than base: they are not compared." in found.statements
    assert column(table(found, "Against the baseline"), "p") == [None]


def test_moments_of_runs_are_compared_within_each_run() -> None:
    cells = [
        cell({"step": step}, seed, 3.5 - step / 1000 + noise * step / 20)
        for step in (100, 200, 300)
        for seed, noise in NOISE.items()
    ]
    found = analyse(cells)
    assert not any("as a record" in said for said in found.statements)
    assert any("paired" in said and "neighbouring step" in said for said in found.statements)


def test_cells_of_different_code_are_called_so(tmp_path: Path) -> None:
    cells = []
    for index, code in enumerate("ab"):
        folder = tmp_path / code
        folder.mkdir()
        (folder / "provenance.json").write_text(json.dumps({"environment": {"code_sha256": code}}))
        cells.append(cell({"train.steps": index}, 1, 3.5, folder=folder))
    assert "The cells were made by 2 versions of pgolf's code." in analyse(cells).statements
    assert not any("versions" in said for said in analyse(cells[:1]).statements)
