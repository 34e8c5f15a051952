"""What a study found: its cells side by side, tests against the baseline, curves, lines that sum up."""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from pgolf.errors import PgolfError
from pgolf.evaluate.evaluations import EVALUATIONS
from pgolf.report.content import (
    Block,
    Card,
    Chart,
    Interval,
    Intervals,
    LineChart,
    Listing,
    Prose,
    Report,
    Section,
    Statements,
    Table,
    Value,
    p_text,
    signed,
)
from pgolf.report.content import Series as Line
from pgolf.report.run_report import score_steps, validation_points
from pgolf.runtime.files import read_json, read_text
from pgolf.runtime.run_files import METRICS, PROVENANCE
from pgolf.study.cells import (
    DIFFERENCES,
    STUDY,
    TERMS,
    Cell,
    Group,
    diverged,
    groups_of,
    quantity,
    read_cells,
    term_tables,
    terms_in,
)
from pgolf.study.fits import FORMS, Fit, NoFit, fit
from pgolf.study.series import Series, rate_table, series_of, settings, statement, training_of, trend_table
from pgolf.study.statistics import (
    LEVEL,
    MARGIN,
    MOST_SEEDS,
    RECORD_LEVEL,
    Sample,
    TTest,
    adjusted,
    detectable,
    paired,
    record_claim,
    sample,
    seeds_needed,
    welch,
)
from pgolf.train.metrics import read_metrics

_FIT_COLUMNS = (
    *("quantity", "over", "form", "levels off at", "low", "high", "exponent or constant"),
    *("lowest", "highest", "error left out", "curve"),
)


class Analysis(NamedTuple):
    """Everything that was found in a study."""

    title: str
    statements: Sequence[str] = ()
    """One line each, made from the numbers, the most important first."""
    tables: Sequence[Table] = ()
    curves: Sequence[LineChart] = ()
    charts: Sequence[Chart] = ()
    """The score of every cell over its seeds, and how that of the best comes about."""
    cards: Sequence[Card] = ()
    """The means that answer the study's question."""


def analyse(cells: Sequence[Cell], title: str = "Study") -> Analysis:
    """Analyse the finished cells of a study; failed and waiting ones are named.

    The baseline is the cell without changes, or else the first finished one. The score that is compared is
    the last evaluation that every finished cell has, normally TTT.
    """
    groups, statements = groups_of(cells), _warnings(cells)
    if not groups:
        return Analysis(title, [*statements, "No cell is finished: there is nothing to analyse."])
    tables = term_tables(groups)
    shared = [name for name in EVALUATIONS if all(group.mean(name) is not None for group in groups)]
    if not shared:
        nothing = "The finished cells share no evaluation: none can be compared."
        return Analysis(title, [*statements, nothing], tables)
    score = shared[-1]
    statements += [_best(groups, score), _power(groups, score)]
    best = min(groups, key=lambda group: fmean(group.values(score)))
    cards = [_card(best, score)]
    base = next((group for group in groups if group.label == "base"), groups[0])
    if others := [group for group in groups if group is not base]:
        said, compared = comparison(base, others, score)
        statements, tables = [*statements, *said], [*tables, *compared]
        rows = [
            row
            for row, group in zip(compared[0].rows, others, strict=True)
            if not _other_text(base, group, score)
        ]
        cards += [_difference(base, min(rows, key=lambda row: row[2]))] if rows else []
    known = [settings(group.cells[0]) for group in groups]
    keys = list(dict.fromkeys(key for group in groups for key in group.cells[0].changes))
    chosen = [{key: setting.get(key) for key in keys} for setting in known]
    every = {name: [group.by_seed(name) for group in groups] for name in TERMS}
    found = {name: series_of(chosen, values, quantity(name)) for name, values in every.items() if all(values)}
    scored = found.pop(score)
    rest = list(itertools.chain(*found.values()))
    fits = [(series, [fit(series.points, form) for form in FORMS]) for series in scored]
    trainings = [training_of(group.label, group.cells) for group in groups]
    through = [training[0] for training in trainings if training]
    parts = [part for training in trainings for part in training[1:]]
    statements += [*map(statement, scored), *(_fit_line(*entry) for entry in fits), *map(statement, parts)]
    if scored or rest or through:
        tables += [trend_table([*scored, *rest, *through, *parts]), rate_table([*scored, *rest, *through])]
    if fits:
        tables.append(_fit_table(fits))
    curves = []
    for series, forms in fits:
        good = [curve for curve in forms if isinstance(curve, Fit)]
        curves += [_curve(series, curve) for curve in good] or [_curve(series)]
    curves += [_curve(series) for series in [*rest, *through]]
    charts = [_scores(groups, score), *_steps(best)]
    return Analysis(title, statements, tables, curves, charts, cards)


def _warnings(cells: Sequence[Cell]) -> list[str]:
    """The cells that are left out, and whether code changed in the middle of the study."""
    said = [f"{c.name} failed and is left out: {c.error}" for c in cells if c.status == "failed"]
    said += [f"{c.name} is not finished and is left out." for c in cells if c.status == "waiting"]
    finished = [cell for cell in cells if cell.status == "finished"]
    no_number = "has a score that is no number (it diverged) and is left out"
    said += [f"{cell.name} {no_number}." for cell in finished if diverged(cell)]
    paths = [path for cell in finished if (path := cell.folder / PROVENANCE).is_file()]
    made = {read_json(path).get("environment", {}).get("code_sha256") for path in paths}
    return [*said, f"The cells were made by {len(made)} versions of pgolf's code."] if len(made) > 1 else said


def _best(groups: Sequence[Group], score: str) -> str:
    means = {group.label: sample(group.values(score)) for group in groups}
    label, best = min(means.items(), key=lambda entry: entry[1].mean)
    which = f"Lowest of {len(means)} cells: {label} with" if len(means) > 1 else f"{label}:"
    return f"{which} {best.mean:.4f} {quantity(score)} ({_of_seeds(best)})."


def _of_seeds(found: Sample) -> str:
    if found.low is None or found.high is None:
        return "one seed: noise unknown"
    return f"mean of {found.count} seeds, {_interval(found.low, found.high)}"


def _interval(low: float, high: float) -> str:
    return f"95 % interval {low:.4f} to {high:.4f}"


def _card(group: Group, score: str) -> Card:
    found = sample(group.values(score))
    label, note = EVALUATIONS[score].label, f"{group.label}: {_of_seeds(found)}"
    return Card(f"{label}, lowest mean", f"{found.mean:.4f}", note)


def _difference(base: Group, row: Sequence[Any]) -> Card:
    """The best of the others beside the baseline, from its row of the table of tests."""
    label, seeds, difference, low, high = row[:5]
    found = row[_TEST_COLUMNS.index("verdict")]
    found = found if low is None else f"{_interval(low, high)}, {found}"
    note = f"{label} minus {base.label}: {found} (seeds: {seeds})"
    return Card("against the baseline", signed(difference), note)


def _scores(groups: Sequence[Group], score: str) -> Intervals:
    rows = []
    for group in groups:
        found = sample(group.values(score))
        rows.append(Interval(group.label, found.mean, found.low, found.high, group.values(score)))
    note = "A point is a run, the mark their mean, the line its 95 % interval (Student)."
    return Intervals(f"{quantity(score)} by cell", quantity(score), rows, note)


def _steps(group: Group) -> list[Chart]:
    means = {name: group.mean(name) for name in EVALUATIONS}
    charts = score_steps({name: mean for name, mean in means.items() if mean is not None})
    return [chart._replace(note=f"Means of {group.label}. {chart.note}") for chart in charts]


def _power(groups: Sequence[Group], score: str) -> str:
    """What the spread within the cells allows to be found at all."""
    samples = [sample(group.values(score)) for group in groups]
    freedom = sum(found.count - 1 for found in samples)
    if freedom == 0:
        return (
            "Every cell has one seed: the noise between seeds is unknown, and no difference is significant."
        )
    squares = sum((found.count - 1) * (found.deviation or 0.0) ** 2 for found in samples)
    if squares == 0:
        return "Seeds of each cell gave equal scores: they are no independent runs, nothing can be tested."
    deviation, seeds = math.sqrt(squares / freedom), max(2, min(found.count for found in samples))
    spread = f"standard deviation of {deviation:.4f} {quantity(score)} ({freedom} degrees of freedom)"
    least = f"{seeds} seeds a side find a difference of {detectable(deviation, seeds):.4f} with 80 % chance"
    return f"Seeds of the same cell differ by a {spread}; {least} (two-sided Welch, p < {LEVEL:g})."


def _curve(series: Series, found: Fit | None = None) -> LineChart:
    """Measured points, with the line fitted to them and its 95 % band."""
    lines, band = [Line("measured", sorted(series.points), "points", 1)], list[tuple[float, float, float]]()
    title, note = f"{series.quantity} over {series.x_name}", ""
    if found is not None:
        lines.insert(0, Line("fit, with its 95 % band", [(x, y) for x, y, _, _ in found.line], "line", 0))
        band = [(x, low, high) for x, _, low, high in found.line]
        title, note = f"{title}, {found.form}", found.formula
    log_x = min(series.xs) > 0 and max(series.xs) >= 8 * min(series.xs)
    return LineChart(title, series.x_name, series.quantity, lines, band, log_x=log_x, note=note)


def _fit_table(fits: Sequence[tuple[Series, Sequence[Fit | NoFit]]]) -> Table:
    rows: list[list[Value]] = []
    for series, found in ((series, found) for series, forms in fits for found in forms):
        names = (series.quantity, series.x_name, found.form)
        if isinstance(found, NoFit):
            rows.append([*names, *([None] * 7), f"none: {found.reason}"])
            continue
        numbers = ("open" if number is None else number for number in (*found.a, *found.shape))
        rows.append([*names, *numbers, found.leave_one_out, found.formula])
    note = (
        "low and high, lowest and highest: 95 % intervals; open: not bounded by these points. error left "
        "out: of predicting the points of each x from all others, root mean square."
    )
    return Table("Fitted curves", _FIT_COLUMNS, rows, note, 5)


def _fit_line(series: Series, found: Sequence[Fit | NoFit]) -> str:
    """Which curve predicts points better that it has not seen."""
    begin = f"{series.quantity} over {series.x_name}"
    curves = sorted((one for one in found if isinstance(one, Fit)), key=lambda curve: curve.leave_one_out)
    if not curves:
        reasons = dict.fromkeys(one.reason for one in found if isinstance(one, NoFit))
        return f"{begin}: no curve is fitted: {'; '.join(reasons)}."
    errors = " against ".join(f"{curve.leave_one_out:.2g}" for curve in curves)
    return f"{begin}: the {curves[0].form} {curves[0].formula} predicts left-out points best ({errors})."


_MOST_LINES, _FIRST_STATEMENTS = 12, 10


def study_page(folder: Path) -> Report:
    """The report of the study in a folder, all of whose cells may still be waiting."""
    cells, path = read_cells(folder), folder / STUDY
    text = read_text(path) if path.is_file() else ""
    try:
        asked = tomllib.loads(text)
    except ValueError as error:
        raise PgolfError(f"{path}: damaged ({error}); restore it from a copy") from error
    analysis = analyse(cells, asked.get("title") or folder.resolve().name)
    first, rest = analysis.statements[:_FIRST_STATEMENTS], analysis.statements[_FIRST_STATEMENTS:]
    more = [Statements(rest, f"{len(rest)} more", folded=True)] if rest else []
    findings: list[Block] = [Prose(DIFFERENCES), *analysis.charts, Statements(first), *more]
    sections = [Section("findings", "Findings", findings), Section("cells", "Cells", _cells(cells))]
    if analysis.curves or analysis.tables:
        sections.append(Section("analysis", "Analysis", [*analysis.curves, *analysis.tables]))
    if text:
        sections.append(Section("study", "The study", [Listing(text.rstrip().splitlines(), "toml")]))
    cards = [*analysis.cards, *_cards(cells)]
    return Report(analysis.title, asked.get("question", ""), cards, sections)


def _cards(cells: Sequence[Cell]) -> list[Card]:
    cards = []
    finished, failed = (sum(cell.status == status for cell in cells) for status in ("finished", "failed"))
    share = finished / max(len(cells), 1)
    cards.append(Card("finished", f"{finished} of {len(cells)}", "cells", share))
    if failed:
        cards.append(Card("failed", f"{failed}", "cells", mood="bad"))
    return [*cards, Card("seeds", f"{len({cell.seed for cell in cells})}")]


def _cells(cells: Sequence[Cell]) -> list[Block]:
    names = [name for name in terms_in(cells) if name in EVALUATIONS]
    rows: list[list[Value]] = []
    for cell in cells:
        scores = (cell.scores.get(name) for name in names)
        rows.append([cell.name, cell.label, cell.seed, cell.error or cell.status, *scores, cell.bytes])
    columns = ("cell", "changes", "seed", "state", *(EVALUATIONS[name].title for name in names), "bytes")
    table = Table("All cells", columns, rows, "Scores in bits per byte.")
    return [*_validations([cell for cell in cells if cell.scores]), table]


def _validations(scored: Sequence[Cell]) -> list[Chart]:
    """Validation by step, one colour for each choice, whatever the seed; of many cells the first."""
    labels = list(dict.fromkeys(cell.label for cell in scored))
    lines = []
    for cell in scored[:_MOST_LINES]:
        if points := validation_points(read_metrics(cell.folder / METRICS)):
            lines.append(Line(cell.label, points, "dots", labels.index(cell.label)))
    note = f"The first {_MOST_LINES} of {len(scored)} cells." if len(scored) > _MOST_LINES else ""
    chart = LineChart("Validation of last weights", "step", "bits per byte", lines, note=note)
    return [chart] if lines else []


_TEST_COLUMNS = (
    *("cell", "seeds", "difference", "low", "high", "test", "p", "p (Holm)", "p (Welch)"),
    *("verdict", "seeds needed"),
)
_RULE = ("cell", "difference", "p (Welch)", "p (paired)", "pairs", "record rule", "seeds needed", "why")


def comparison(base: Group, others: Sequence[Group], score: str) -> tuple[list[str], list[Table]]:
    """A line for each group, and the tables of all tests."""
    tests = [_test(base, group, score) for group in others]
    family = sum(test is not None for test in tests)
    corrected = f", Holm for {family} tests" if family > 1 else ""
    said, rows, records = list[str](), list[list[Value]](), list[list[Value]]()
    for group, test, p in zip(others, tests, adjusted(tests), strict=True):
        row, line = _tested(base, group, score, test, p, corrected)
        rows.append(row)
        said.append(line)
        if why_not := _no_record(base, group, score):
            records.append([group.label, None, None, None, None, "not asked", None, why_not])
            continue
        claim = record_claim(group.losses(score), base.losses(score))
        p_values = (None if found is None else p_text(found.p) for found in (claim.welch, claim.paired))
        verdict = "holds" if claim.record else "does not hold"
        end = (claim.pairs, verdict, claim.seeds_needed, claim.why)
        records.append([group.label, -claim.improvement, *p_values, *end])
        if claim.welch is not None and claim.improvement > claim.margin:
            said.append(f"{group.label} as a record over {base.label}: {claim.why}")
    title = EVALUATIONS[score].title
    note = (
        f"Of the {title} score in bits per byte, cell minus baseline ({base.label}). low and high: 95 % "
        "interval, each by itself. Two-sided; paired where both have the same seeds, "
        f"Welch otherwise; significant: p (Holm) < {LEVEL:g}. seeds needed: a side, to find a true "
        f"difference as large as this one at p < {LEVEL:g} with 80 % chance; a dash if over "
        f"{MOST_SEEDS:,} or unknown. Texts of up to 1 % more bytes count as the same: another tokenizer "
        "leaves out another end."
    )
    rule = (
        f"Of the {title} loss in nats per target, cell minus baseline ({base.label}). The rule: below "
        f"-{MARGIN:g} at p < {RECORD_LEVEL:g}; one-sided tests of that margin, Welch's and, "
        "with the same seeds, the paired one. Nothing is corrected for having tried several cells: confirm "
        "the best with new seeds."
    )
    title = f"Against the baseline: {base.label}"
    against = Table(title, _TEST_COLUMNS, rows, note, 5, differences=("difference", "low", "high"))
    return said, [against, Table("Record rule", _RULE, records, rule, 5, differences=("difference",))]


def _other_text(base: Group, group: Group, score: str) -> bool:
    """Whether two groups scored other text; a last window that is left out, of other tokens, is no matter."""
    sizes = group.scope(score, "bytes") | base.scope(score, "bytes")
    return max(sizes) > 1.01 * min(sizes)


def _test(base: Group, group: Group, score: str) -> TTest | None:
    """Paired where both sides hold the same seeds, Welch's otherwise: by the plan, not by the outcome."""
    new, old = group.by_seed(score), base.by_seed(score)
    if _other_text(base, group, score):
        return None
    if set(new) == set(old):
        return paired([new[seed] for seed in old], list(old.values()))
    return welch(list(new.values()), list(old.values()))


def _tested(
    base: Group, group: Group, score: str, test: TTest | None, p: float | None, corrected: str
) -> tuple[list[Value], str]:
    """A row of the table of tests, and the line that says it."""
    new, old = group.values(score), base.values(score)
    other, difference, needed = welch(new, old), fmean(new) - fmean(old), None
    size = f"{group.label}: {signed(difference)} {quantity(score)} against {base.label}"
    found: list[Value] = [None] * 5
    if test is None or p is None:
        why = "one seed" if min(len(new), len(old)) < 2 else "seeds without any spread"
        verdict, line = "not tested", f"{size}; {why}: noise unknown."
    else:
        verdict = "significant" if p < LEVEL else "not significant"
        found = [test.low, test.high, test.kind, p_text(test.p), p_text(p)]
        needed = seeds_needed(test.difference, test.deviation, pairs=test.kind == "paired")
        line = f"{size}, {verdict} ({test.kind} {p_text(p)}{corrected})."
    if _other_text(base, group, score):
        line = f"{group.label} scored other text than {base.label}: they are not compared."
    begin = (group.label, f"{len(new)} and {len(old)}", difference)
    return [*begin, *found, None if other is None else p_text(other.p), verdict, needed], line


def _no_record(base: Group, group: Group, score: str) -> str:
    """Why the record rule cannot be asked of two groups; empty if it can."""
    if any("step" in cell.changes for cell in (*base.cells, *group.cells)):
        return "moments of runs, not runs"
    if any(group.scope(score, what) != base.scope(score, what) for what in ("targets", "bytes")):
        return "nats per target of other targets: another tokenizer or another text"
    return ""
