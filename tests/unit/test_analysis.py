"""The analysis of a study: groups, terms, tests, curves, lines."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from pgolf.evaluate.evaluations import EVALUATIONS, evaluation_names
from pgolf.report.content import Intervals, Table, Waterfall
from pgolf.study.analysis import Analysis, analyse
from pgolf.study.cells import Cell, terms_of

# Nats per target of each evaluation, relative to the first.
SHIFTS = {"raw": 0.0, "float": -0.02, "packed": 0.03, "sliding": -0.01, "ttt": -0.06, "memory": -0.16}
NOISE = {1: -0.001, 2: 0.0002, 3: 0.0008}
BITS = 0.5


def result(
    loss: float, size: int = 999_000, evaluations: Sequence[str] = tuple(evaluation_names(memory=False))
) -> dict[str, Any]:
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
    assert terms["by averaging"] == pytest.approx(BITS * -0.02)
    assert terms["by quantization"] == pytest.approx(BITS * 0.05)
    assert terms["by sliding windows"] == pytest.approx(BITS * -0.04)
    assert terms["by TTT"] == pytest.approx(BITS * -0.05)
    assert terms["bytes"] == 999_000
    steps = table(found, "Step by step")
    assert column(steps, "step") == ["averaging", "quantization", "sliding windows", "TTT"]
    assert column(steps, "change") == pytest.approx([-0.01, 0.025, -0.02, -0.025])
    assert (column(steps, "before")[0], column(steps, "after")[-1]) == pytest.approx((1.75, 1.72))
    assert not [name for name in means.columns if "memory" in name]


def test_a_memory_is_a_term_where_a_cell_has_one() -> None:
    cells = [cell({}, 1, 3.5), cell({"memory.enabled": True}, 1, 3.5, evaluations=tuple(EVALUATIONS))]
    found = analyse(cells)
    assert column(table(found, "Every term, mean"), "by memory") == [None, pytest.approx(BITS * -0.1)]
    assert column(table(found, "Step by step"), "step")[-1] == "memory"


def test_means_and_intervals_are_the_headline_and_not_the_luckiest_seed() -> None:
    cells = [cell({}, seed, 3.5 + noise) for seed, noise in ((1, -0.03), (2, 0.004), (3, 0.008))]
    cells += [
        cell({"model.layers": 9}, seed, 3.49 + noise) for seed, noise in ((1, 0.0), (2, 0.001), (3, 0.002))
    ]
    found = analyse(cells)
    lowest, difference = found.cards
    assert (lowest.label, lowest.value) == ("TTT BPB, lowest mean", f"{BITS * 3.431:.4f}")
    assert lowest.note == "model.layers=9: mean of 3 seeds, 95 % interval 1.7143 to 1.7167"
    assert difference.value == "-0.0015" and "model.layers=9 minus base" in difference.note
    assert "not significant" in difference.note
    scores, steps = found.charts
    assert isinstance(scores, Intervals) and isinstance(steps, Waterfall)
    assert steps.note.startswith("Means of model.layers=9.") and steps.values[-1] == pytest.approx(1.7155)
    assert [(row.name, len(row.values)) for row in scores.rows] == [("base", 3), ("model.layers=9", 3)]
    for row in scores.rows:
        assert row.low is not None and row.high is not None and row.low < row.mean < row.high
    [alone] = analyse([cell({}, 1, 3.5)]).cards
    assert alone.note == "base: one seed: noise unknown"


def test_every_difference_is_new_minus_old() -> None:
    """The same sign in every table: here the cell is better than the baseline by any measure."""
    cells = [cell({}, seed, 3.5 + noise) for seed, noise in NOISE.items()]
    cells += [cell({"model.layers": 9}, seed, 3.48 + 0.9 * noise) for seed, noise in NOISE.items()]
    found = analyse(cells)
    assert (
        max(column(table(found, "Against"), "difference"))
        < 0
        > max(column(table(found, "Record"), "difference"))
    )
    assert max(column(table(found, "Against"), "high")) < 0
    assert any("model.layers=9: -0.0100 TTT bits per byte against base" in said for said in found.statements)
    assert found.cards[1].value == "-0.0100"
    means, steps = table(found, "Every term, mean"), table(found, "Step by step")
    for name, step in (("by quantization", "quantization"), ("by TTT", "TTT")):
        changes = [row[-1] for row in steps.rows if row[5] == step]
        assert column(means, name) == pytest.approx(changes)
    assert means.text("by TTT", -0.03) == "-0.0300" and means.text("by quantization", 0.03) == "+0.0300"
    assert means.text("TTT", 1.7) == "1.7000"


def test_spread_over_seeds() -> None:
    found = analyse([cell({}, seed, 3.5 + noise) for seed, noise in ((1, 0.0), (2, 0.002), (3, 0.004))])
    assert column(table(found, "Every term, mean"), "TTT") == pytest.approx([BITS * 3.442])
    spreads = table(found, "Every term, standard deviation")
    assert column(spreads, "TTT") == pytest.approx([BITS * 0.002])
    # Every run has the same gain from TTT, whatever its level.
    assert column(spreads, "by TTT") == pytest.approx([0.0], abs=1e-12)
    assert any(
        "standard deviation of 0.0010 TTT bits per byte (2 degrees of freedom)" in s for s in found.statements
    )


def test_one_seed_claims_nothing() -> None:
    found = analyse([cell({}, 1, 3.5), cell({"model.layers": 9}, 1, 3.4)])
    assert (
        "model.layers=9: -0.0500 TTT bits per byte against base; one seed: noise unknown." in found.statements
    )
    assert "Every cell has one seed" in found.statements[1]
    assert not any(", significant" in said or "as a record" in said for said in found.statements)
    assert column(table(found, "Against"), "p") == [None]
    assert column(table(found, "Against"), "verdict") == ["not tested"]
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
    assert column(tests, "verdict") == ["significant", "not significant"]
    said = " ".join(found.statements)
    assert "qat.enabled=True: -0.0060 TTT bits per byte against base, significant (paired p" in said
    assert "Holm for 2 tests" in said
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
    assert column(rule, "difference") == pytest.approx([-0.01, -0.0049], abs=1e-6)
    assert column(rule, "record rule") == ["holds", "does not hold"]


def test_a_numeric_key_makes_a_curve() -> None:
    found = analyse(steps_study())
    titles = [curve.title for curve in found.curves]
    assert titles[:2] == [
        "TTT bits per byte over train.steps, power law",
        "TTT bits per byte over train.steps, saturation",
    ]
    first = found.curves[0]
    assert first.log_x
    assert first.note.startswith("y = ")
    said = " ".join(found.statements)
    assert "TTT bits per byte over train.steps: falls throughout" in said
    assert (
        "the change per 1,000 steps diminishes throughout; significant differences of neighbours: 3 of 3"
        in said
    )
    rates = [row for row in table(found, "Rates").rows if row[0] == "TTT bits per byte"]
    assert [row[2] for row in rates] == [1000, 2000, 4000]
    assert rates[0][7] == pytest.approx(-0.05, abs=1e-3)
    fits = table(found, "Fitted curves")
    assert column(fits, "form") == ["power law", "saturation"]
    low, level, high = (column(fits, name)[0] for name in ("low", "levels off at", "high"))
    assert low == "open" or low < level < high


def test_the_base_takes_part_with_the_value_in_its_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("[train]\nsteps = 1000\nwarmdown_steps = 500\n")
    cells = [cell({}, 1, 3.5, tmp_path), *(cell({"train.steps": n}, 1, 3.5 - n / 1e5) for n in (2000, 4000))]
    said = " ".join(analyse(cells).statements)
    assert "at 1,000 to" in said
    assert column(table(analyse(cells), "How each"), "values")[0] == 3


def test_keys_that_change_together_are_one_series() -> None:
    steps = {9000: 4000, 12000: 5000, 15000: 6000}
    cells = [
        cell({"train.steps": n, "train.warmdown_steps": down}, 1, 3.5 - n / 1e5) for n, down in steps.items()
    ]
    said = " ".join(analyse(cells).statements)
    assert "over train.steps (with train.warmdown_steps): falls throughout" in said
    assert "no curve is fitted: too few points: 3 different x" in said


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
    rates = table(found, "Rates")
    assert column(rates, "over") == ["step"] * 4
    assert column(rates, "change")[0] == pytest.approx(-0.4)
    # The runs fell by 0.4, 0.38 and 0.39 in the last thousand steps: what sets them apart otherwise cancels.
    assert column(rates, "±")[3] == pytest.approx(0.01)
    trends = table(found, "How each")
    assert column(trends, "over") == ["step", "step before the warmdown", "step in the warmdown"]
    assert column(trends, "rate")[1] == pytest.approx(-0.2), "from 2.6 at step 500 to 2.3 at 2,000"
    assert column(trends, "change")[2] == "accelerates throughout"
    assert column(trends, "significant")[2] == "2 of 2"
    change, p = (column(trends, name)[2] for name in ("change of rate", "p"))
    assert change == pytest.approx(-0.56 / 3)
    assert p.startswith("p = 0.00")
    said = next(entry for entry in found.statements if "in the warmdown" in entry)
    assert said.startswith("base: raw float bits per byte over step in the warmdown: falls throughout")
    assert "accelerates throughout; significant differences of neighbours: 2 of 2" in said


def test_a_short_training_has_the_same_rates(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("[train]\nsteps = 20\nwarmdown_steps = 10\n")
    lines = [{"step": step, "val_bpb": 3.0 - step / 100} for step in (5, 10, 15, 20)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = analyse([cell({}, 1, 3.5, tmp_path)])
    assert column(table(found, "Rates"), "change")[:3] == pytest.approx([-10.0] * 3)
    assert column(table(found, "How each"), "rate") == pytest.approx([-10.0] * 3)
    assert "over step in the warmdown: falls throughout, from 2.9 at 10 to 2.8 at 20" in " ".join(
        found.statements
    )


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
    assert "-0.0500 packed bits per byte against base" in " ".join(found.statements)
    assert column(table(found, "Every term, mean"), "by TTT") == [pytest.approx(-0.025), None]


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
    rates = table(found, "Rates")
    assert set(column(rates, "over")) == {"step"}
    assert column(rates, "p (Holm)")[0] is not None
    assert column(rates, "±")[0] > 0, "within each run"


def test_cells_of_different_code_are_called_so(tmp_path: Path) -> None:
    cells = []
    for index, code in enumerate("ab"):
        folder = tmp_path / code
        folder.mkdir()
        (folder / "provenance.json").write_text(json.dumps({"environment": {"code_sha256": code}}))
        cells.append(cell({"train.steps": index}, 1, 3.5, folder=folder))
    assert "The cells were made by 2 versions of pgolf's code." in analyse(cells).statements
    assert not any("versions" in said for said in analyse(cells[:1]).statements)


def test_a_ttt_gain_is_one_of_ttt_alone() -> None:
    # Published by #1005: TTT gains 0.0143, not the 0.0086 between the first and the last.
    scores = {"float": 1.0939, "packed": 1.1231, "sliding": 1.0996, "ttt": 1.0853}
    found = analyse([published(scores)])
    steps = table(found, "Step by step")
    assert column(steps, "change") == pytest.approx([0.0292, -0.0235, -0.0143])
    assert column(table(found, "Every term, mean"), "by TTT") == pytest.approx([-0.0143])
    # #644 calls the whole way from the float model to the last score its gain from TTT.
    [row] = table(analyse([published({"raw": 1.1088, "ttt": 1.0944})]), "Step by step").rows
    assert row[1:3] == ["raw float", "TTT"]
    assert row[5] == "averaging and quantization and sliding windows and TTT", "not told apart"
    assert row[6] == pytest.approx(-0.0144)
    assert not table(analyse([published({"ttt": 1.0944})]), "Step by step").rows


def test_changes_compare_what_differs_in_one_thing() -> None:
    terms = terms_of(
        published({"raw": 1.110, "float": 1.106, "packed": 1.124, "sliding": 1.100, "ttt": 1.093})
    )
    expected = {
        "by averaging": -0.004,
        "by quantization": 0.018,
        "by sliding windows": -0.024,
        "by TTT": -0.007,
    }
    assert {name: terms[name] for name in expected} == pytest.approx(expected)
    assert terms["bytes"] == 14_473_337
    assert "by TTT" not in terms_of(published({"packed": 1.1, "ttt": 1.0}))


def published(scores: Mapping[str, float]) -> Cell:
    evaluations = {
        name: {"val_loss": bpb, "val_bpb": bpb, "targets": 10, "bytes": 30} for name, bpb in scores.items()
    }
    found = {"evaluations": evaluations, "pack": {"total_bytes": 14_473_337}}
    return Cell("published", {}, 1337, Path("none"), "finished", found, None)


def pair(new: Mapping[int, float], old: Mapping[int, float]) -> tuple[list[Any], str]:
    """The row of the test table for one cell against the base, scores in bits per byte, and its line."""
    cells = [cell({}, seed, bpb / BITS - SHIFTS["ttt"]) for seed, bpb in old.items()]
    cells += [cell({"train.steps": 9}, seed, bpb / BITS - SHIFTS["ttt"]) for seed, bpb in new.items()]
    found = analyse(cells)
    [row] = table(found, "Against").rows
    return list(row), next(said for said in found.statements if said.startswith("train.steps=9: "))


def test_seeds_decide_what_is_significant() -> None:
    # 20,000 steps (#1407) and 50,000 steps (#1424) with the same three seeds.
    short, long = {1337: 1.0957, 42: 1.0962, 2024: 1.0962}, {1337: 1.0853, 42: 1.0857, 2024: 1.0865}
    row, said = pair(long, short)
    # Differences 0.0104, 0.0105, 0.0097: t = 40.5, and with 2 degrees of freedom p = 1 - t / sqrt(2 + t^2).
    assert (row[5], row[6], row[9]) == ("paired", "p = 0.00061", "significant")
    assert said == "train.steps=9: -0.0102 TTT bits per byte against base, significant (paired p = 0.00061)."
    # FlowRefiner against the base of #1232: one seed.
    assert pair({1337: 1.09279}, {1337: 1.09292})[1].endswith(
        "-0.0001 TTT bits per byte against base; one seed: noise unknown."
    )


def test_what_is_not_significant_says_how_many_seeds_it_takes() -> None:
    # Differences 0.002, 0 and 0.004: mean and standard deviation 0.002: an effect of one deviation.
    row, said = pair({1: 1.100, 2: 1.103, 3: 1.102}, {1: 1.102, 2: 1.103, 3: 1.106})
    assert (row[6], row[9], row[10]) == ("p = 0.23", "not significant", 10)
    assert "-0.0020 TTT bits per byte against base, not significant (paired p = 0.23)" in said


def test_a_fit_says_what_is_not_known() -> None:
    steps = [9000, 12000, 15000, 20000, 25000]
    bpb = [1.116, 1.108, 1.104, 1.098, 1.094]
    cells = [cell({"train.steps": n}, 1, y / BITS - SHIFTS["ttt"]) for n, y in zip(steps, bpb, strict=True)]
    found = analyse(cells)
    fits = table(found, "Fitted curves")
    assert column(fits, "low")[0] == "open", "the limit of the power law is not bounded below"
    assert column(fits, "levels off at")[0] == pytest.approx(1.0624, abs=5e-5)
    assert "exp(-x /" in column(fits, "curve")[1]
    assert any(
        "the power law y = " in said and "predicts left-out points best" in said for said in found.statements
    )
    # No law that levels off is fitted to a loss that accelerates (#1232).
    bent = [1.2064, 1.2016, 1.1898, 1.1801, 1.1658, 1.1511, 1.1307, 1.1062]
    cells = [
        cell({"train.steps": 1000 * n}, 1, y / BITS)
        for n, y in zip((7, 8, 10, 12, 14, 16, 18, 20), bent, strict=True)
    ]
    curves = column(table(analyse(cells), "Fitted curves"), "curve")
    assert all("do not bend like" in curve for curve in curves)


def test_a_fit_is_drawn_with_points_line_and_band() -> None:
    chart = analyse(steps_study()).curves[0]
    line, measured = chart.series
    assert (line.style, measured.style, len(measured.points)) == ("line", "points", 12)
    assert [x for x, _ in measured.points] == sorted(x for x, _ in measured.points)
    assert [x for x, _, _ in chart.band] == [x for x, _ in line.points]
    assert all(low <= y <= high for (_, y), (_, low, high) in zip(line.points, chart.band, strict=True))
