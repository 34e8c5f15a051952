"""What a study found: tables of every term, tests against the baseline, curves, and sentences made from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pgolf.report.findings import Analysis, Curve, Table, Value
from pgolf.runtime.files import read_json
from pgolf.runtime.run_files import PROVENANCE
from pgolf.study.cells import Cell
from pgolf.study.fits import FORMS, Fit, fit
from pgolf.study.record import LEVEL as RECORD_LEVEL
from pgolf.study.record import MARGIN, record_claim
from pgolf.study.series import groups_series
from pgolf.study.statements import (
    Series,
    capital,
    difference_statement,
    fit_statements,
    noise_statements,
    p_text,
    shape_statements,
    terms_statement,
)
from pgolf.study.statistics import (
    LEVEL,
    MOST_SEEDS,
    TTest,
    detectable,
    holm,
    paired,
    sample,
    seeds_needed,
    welch,
)
from pgolf.study.terms import EVALUATIONS, GAINS, NAMES, Terms, terms_of
from pgolf.study.warmdown import warmdown_findings

_TERMS = (*EVALUATIONS, *GAINS)
_TERM_COLUMNS = (
    *("raw float", "averaged float", "packed", "sliding", "TTT"),
    *("averaging gain", "quantization gap", "sliding gain", "TTT gain", "bytes"),
)
_TERM_NOTE = (
    "Bits per byte; bytes of the artifact. averaging gain = raw - averaged; quantization gap = packed - averaged,"
    " both with standard windows; sliding gain = packed - sliding; TTT gain = sliding - TTT. Each is within"
    " one run."
)


@dataclass(frozen=True)
class Group:
    """The finished cells with the same changes: one recipe, several seeds."""

    label: str
    cells: Sequence[Cell]

    @property
    def terms(self) -> dict[int, Terms]:
        """Terms by seed."""
        return {cell.seed: terms_of(cell.result) for cell in self.cells if cell.result is not None}

    def by_seed(self, name: str) -> dict[int, float]:
        """One of the terms by seed, of the seeds that have it."""
        found = {seed: terms.get(name) for seed, terms in self.terms.items()}
        return {seed: value for seed, value in found.items() if value is not None}

    def losses(self, evaluation: str) -> dict[int, float]:
        """``val_loss`` by seed, nats per target."""
        results = {cell.seed: cell.result for cell in self.cells if cell.result is not None}
        return {
            seed: float(result["evaluations"][evaluation]["val_loss"])
            for seed, result in results.items()
            if evaluation in result["evaluations"]
        }

    def scope(self, evaluation: str, what: str) -> set[int]:
        """How many "targets" or "bytes" an evaluation covers; one number where all runs scored the same."""
        found = (cell.result["evaluations"].get(evaluation) for cell in self.cells if cell.result is not None)
        return {int(score.get(what, 0)) for score in found if score is not None}


def analyse(cells: Sequence[Cell], title: str = "Study") -> Analysis:
    """Analyse the finished cells of a study; failed and waiting ones are named.

    The baseline is the cell without changes, or else the first finished one. The score that is compared is
    the last evaluation that every finished cell has, normally TTT.
    """
    groups = _groups(cells)
    statements = [*_missing(cells), *_versions(cells)]
    if not groups:
        return Analysis(title, [*statements, "No cell is finished: there is nothing to analyse."])
    base = next((group for group in groups if group.label == "base"), groups[0])
    score = _score(groups)
    tables = [_means(groups), *_spreads(groups), _runs(groups)]
    curves: list[Curve] = []
    if score is None:
        return Analysis(
            title, [*statements, "The finished cells share no evaluation: none can be compared."], tables
        )
    statements += [*_best(groups, score), *_power(groups, score)]
    others = [group for group in groups if group is not base]
    if others:
        tests = _tests(base, others, score)
        statements += _comparisons(base, others, score, tests)
        tables.append(_test_table(base, others, score, tests))
        tables.append(_record_table(base, others, score))
    statements += [said for group in groups if (said := terms_statement(_seeded(group), _mean_terms(group)))]
    for series in groups_series([(group.cells, group.by_seed(score)) for group in groups], _quantity(score)):
        fits = [fit(series.points, form) for form in FORMS]
        statements += [*shape_statements(series), *_replicated_noise(series), *fit_statements(series, fits)]
        tables.append(_rates(series))
        curves += [_curve(series, found) for found in fits if isinstance(found, Fit)] or [
            _curve(series, None)
        ]
    for series in _other_series(groups, score):
        statements.append(" ".join(shape_statements(series) + _replicated_noise(series)))
        curves.append(_curve(series, None))
    found = warmdown_findings([(group.label, group.cells) for group in groups])
    return Analysis(
        title, [*statements, *found.statements], [*tables, *found.tables], [*curves, *found.curves]
    )


def _other_series(groups: Sequence[Group], score: str) -> list[Series]:
    """The series of everything but the score, where every group has it."""
    quantities = {name: (_quantity(name), 4) for name in EVALUATIONS if name != score}
    quantities |= {
        name: (f"{name.replace('_', ' ').replace('ttt', 'TTT')} in bits per byte", 4) for name in GAINS
    }
    quantities["bytes"] = ("artifact in bytes", 0)
    found = []
    for name, (quantity, digits) in quantities.items():
        measured = [(group.cells, group.by_seed(name)) for group in groups]
        if all(values for _, values in measured):
            found += groups_series(measured, quantity, digits)
    return found


def _replicated_noise(series: Series) -> list[str]:
    """That one seed shows nothing is said once, of the whole study."""
    return noise_statements(series) if any(len(values) > 1 for _, values in series.levels) else []


def _quantity(evaluation: str) -> str:
    return f"{NAMES[evaluation]} bits per byte"


def _groups(cells: Sequence[Cell]) -> list[Group]:
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        if _is_scored(cell):
            found.setdefault(cell.label, []).append(cell)
    return [Group(label, members) for label, members in found.items()]


def _is_scored(cell: Cell) -> bool:
    """Whether a cell is finished and all of its scores are numbers."""
    if cell.status != "finished" or cell.result is None:
        return False
    return all(math.isfinite(score["val_loss"]) for score in cell.result["evaluations"].values())


def _score(groups: Sequence[Group]) -> str | None:
    for name in reversed(EVALUATIONS):
        if all(terms.get(name) is not None for group in groups for terms in group.terms.values()):
            return name
    return None


def _missing(cells: Sequence[Cell]) -> list[str]:
    said = []
    for status, words in (
        ("failed", "failed and is left out"),
        ("waiting", "is not finished and is left out"),
    ):
        left = [cell for cell in cells if cell.status == status]
        said += [f"{cell.name} {words}{f': {cell.error}' if cell.error else '.'}" for cell in left]
    diverged = [cell for cell in cells if cell.status == "finished" and not _is_scored(cell)]
    return said + [
        f"{cell.name} has a score that is no number (it diverged) and is left out." for cell in diverged
    ]


def _versions(cells: Sequence[Cell]) -> list[str]:
    """A word of warning where cells were made by different code, as after an update in the middle of a study."""
    made = set()
    for cell in cells:
        path = cell.folder / PROVENANCE
        if cell.status == "finished" and path.is_file():
            made.add(read_json(path).get("environment", {}).get("code_sha256"))
    return [f"The cells were made by {len(made)} versions of pgolf's code."] if len(made) > 1 else []


def _seeded(group: Group) -> str:
    count = len(group.cells)
    return f"{group.label} ({f'mean of {count} seeds' if count > 1 else 'one seed'})"


def _mean_terms(group: Group) -> Terms:
    """Means over the seeds of the evaluations that all of them have: their differences are the mean
    differences.
    """
    means = {}
    for name in EVALUATIONS:
        values = group.by_seed(name)
        if len(values) == len(group.cells):
            means[name] = sample(list(values.values())).mean
    return Terms(means)


# ---- tables


def _means(groups: Sequence[Group]) -> Table:
    def mean(group: Group, name: str) -> float | None:
        values = list(group.by_seed(name).values())
        # Of fewer seeds than the other terms, a mean would not add up with theirs.
        return sample(values).mean if len(values) == len(group.cells) else None

    rows: list[list[Value]] = []
    for group in groups:
        size = mean(group, "bytes")
        terms = [mean(group, name) for name in _TERMS]
        rows.append([group.label, len(group.cells), *terms, None if size is None else round(size)])
    return Table("Every term, mean over seeds", ("cell", "seeds", *_TERM_COLUMNS), rows, _TERM_NOTE)


def _spreads(groups: Sequence[Group]) -> list[Table]:
    rows: list[list[Value]] = []
    for group in groups:
        if len(group.cells) < 2:
            continue
        values = [list(group.by_seed(name).values()) for name in (*_TERMS, "bytes")]
        spreads = [sample(entry).deviation if entry else None for entry in values]
        rows.append([group.label, len(group.cells), *spreads])
    note = "Standard deviation with n - 1; of a difference it is that of the runs' differences."
    return [
        Table("Every term, standard deviation over seeds", ("cell", "seeds", *_TERM_COLUMNS), rows, note, 5)
    ][: len(rows)]


def _runs(groups: Sequence[Group]) -> Table:
    rows: list[list[Value]] = [
        [group.label, seed, *(terms.get(name) for name in _TERMS), terms.bytes]
        for group in groups
        for seed, terms in group.terms.items()
    ]
    return Table("Every term, every run", ("cell", "seed", *_TERM_COLUMNS), rows, _TERM_NOTE)


def _tests(base: Group, others: Sequence[Group], score: str) -> list[tuple[TTest | None, float | None]]:
    """The test of each group against the baseline, and its p-value after Holm's correction."""
    tests = [
        _test(group.by_seed(score), base.by_seed(score))
        if group.scope(score, "bytes") == base.scope(score, "bytes")
        else None
        for group in others
    ]
    made = iter(holm([test.p for test in tests if test is not None]))
    return [(test, None if test is None else next(made)) for test in tests]


def _no_record(base: Group, group: Group, score: str) -> str:
    """Why the record rule cannot be asked of two groups; empty if it can."""
    if any("step" in cell.changes for cell in (*base.cells, *group.cells)):
        return "moments of runs, not runs"
    if any(group.scope(score, what) != base.scope(score, what) for what in ("targets", "bytes")):
        return "nats per target of other targets: another tokenizer or another text"
    return ""


def _test(new: Mapping[int, float], old: Mapping[int, float]) -> TTest | None:
    """Paired where both sides hold the same seeds, Welch's otherwise; decided by the plan, not by the
    outcome.
    """
    if set(new) == set(old):
        return paired([new[seed] for seed in old], list(old.values()))
    return welch(list(new.values()), list(old.values()))


def _test_table(
    base: Group, others: Sequence[Group], score: str, tests: Sequence[tuple[TTest | None, float | None]]
) -> Table:
    rows: list[list[Value]] = []
    for group, (test, adjusted) in zip(others, tests, strict=True):
        new, old = group.by_seed(score), base.by_seed(score)
        other = welch(list(new.values()), list(old.values()))
        difference = sample(list(new.values())).mean - sample(list(old.values())).mean
        needed = None
        if test is not None:
            needed = seeds_needed(test.difference, test.deviation, pairs=test.kind == "paired")
        rows.append(
            [
                group.label,
                f"{len(new)} and {len(old)}",
                difference,
                *((None, None, None) if test is None else (test.low, test.high, test.kind)),
                None if test is None else p_text(test.p),
                None if adjusted is None else p_text(adjusted),
                None if other is None else p_text(other.p),
                needed,
            ]
        )
    columns = (
        "cell",
        "seeds",
        "difference",
        "low",
        "high",
        "test",
        "p",
        "p (Holm)",
        "p (Welch)",
        "seeds needed",
    )
    note = (
        f"Of the {NAMES[score]} score in bits per byte, cell minus baseline ({base.label}): negative is better. low and"
        " high: 95 % interval, each by itself. Two-sided; paired where both have the same seeds, Welch otherwise. seeds"
        f" needed: a side, to find a true difference as large as this one at p < {LEVEL:g} with 80 % chance; a dash if"
        f" over {MOST_SEEDS:,} or unknown."
    )
    return Table(f"Against the baseline: {base.label}", columns, rows, note, 5)


def _record_table(base: Group, others: Sequence[Group], score: str) -> Table:
    rows: list[list[Value]] = []
    for group in others:
        if reason := _no_record(base, group, score):
            rows.append([group.label, None, None, None, None, "not asked", None, reason])
            continue
        found = record_claim(group.losses(score), base.losses(score))
        p_values = (None if test is None else p_text(test.p) for test in (found.welch, found.paired))
        verdict = "holds" if found.record else "does not hold"
        rows.append(
            [group.label, found.improvement, *p_values, found.pairs, verdict, found.seeds_needed, found.why]
        )
    columns = (
        "cell",
        "improvement",
        "p (Welch)",
        "p (paired)",
        "pairs",
        "record rule",
        "seeds needed",
        "why",
    )
    note = (
        f"Improvement of the {NAMES[score]} loss on the baseline ({base.label}) in nats per target. The rule: more than"
        f" {MARGIN:g} nats better at p < {RECORD_LEVEL:g}; one-sided tests of that margin, Welch's and, with the same"
        " seeds, the paired one. Nothing is corrected for having tried several cells: confirm the best with new seeds."
    )
    return Table("Record rule", columns, rows, note, 5)


def _rates(series: Series) -> Table:
    rows: list[list[Value]] = []
    means = series.means
    for index, rate in enumerate(series.rates):
        (start, _), (end, values) = series.levels[index], series.levels[index + 1]
        rows.append([start, end, len(values), means[index], means[index + 1], rate])
    columns = ("from", "to", "seeds", "at the first", "at the last", f"change per {series.unit_name}")
    return Table(
        f"{capital(series.quantity)}: rate over {series.x_name}", columns, rows, "Means over seeds.", 5
    )


def _curve(series: Series, found: Fit | None) -> Curve:
    xs = [x for x, _ in series.levels]
    return Curve(
        capital(f"{series.quantity} over {series.x_name}") + (f", {found.form}" if found else ""),
        series.x_name,
        series.quantity,
        series.points,
        found.line if found else (),
        log_x=min(xs) > 0 and max(xs) >= 8 * min(xs),
        note=fit_statements(series, [found])[0] if found else "",
    )


# ---- sentences


def _best(groups: Sequence[Group], score: str) -> list[str]:
    means = {group.label: sample(list(group.by_seed(score).values())) for group in groups}
    label, best = min(means.items(), key=lambda entry: entry[1].mean)
    spread = f", standard deviation {best.deviation:.4f}" if best.deviation is not None else ""
    count = f"mean of {best.count} seeds" if best.count > 1 else "one seed"
    which = f"Lowest of {len(means)} cells: {label} with" if len(means) > 1 else f"{label}:"
    return [f"{which} {best.mean:.4f} {NAMES[score]} bits per byte ({count}{spread})."]


def _comparisons(
    base: Group, others: Sequence[Group], score: str, tests: Sequence[tuple[TTest | None, float | None]]
) -> list[str]:
    family = sum(test is not None for test, _ in tests)
    said = []
    for group, (test, adjusted) in zip(others, tests, strict=True):
        if group.scope(score, "bytes") != base.scope(score, "bytes"):
            said.append(f"{group.label} scored other text than {base.label}: they are not compared.")
            continue
        values = group.by_seed(score), base.by_seed(score)
        quantity = f"{NAMES[score]} bits per byte"
        said.append(difference_statement(group.label, base.label, quantity, *values, test, adjusted, family))
        if _no_record(base, group, score):
            continue
        found = record_claim(group.losses(score), base.losses(score))
        if found.welch is not None and found.improvement > found.margin:
            said.append(f"{group.label} as a record over {base.label}: {found.why}")
    return said


def _power(groups: Sequence[Group], score: str) -> list[str]:
    """What the spread within the cells allows to be found at all."""
    samples = [sample(list(group.by_seed(score).values())) for group in groups]
    freedom = sum(found.count - 1 for found in samples)
    if freedom == 0:
        return [
            "Every cell has one seed: the noise between seeds is unknown, and no difference is significant."
        ]
    variance = sum((found.count - 1) * (found.deviation or 0.0) ** 2 for found in samples) / freedom
    fewest = min(found.count for found in samples)
    seeds = max(2, fewest)
    if variance == 0:
        return [
            "The seeds of each cell gave equal scores: they are no independent runs, and nothing can be tested."
        ]
    least = detectable(variance**0.5, seeds)
    return [
        f"Seeds of the same cell differ by a standard deviation of {variance**0.5:.4f} {NAMES[score]} bits per byte "
        f"({freedom} degrees of freedom); with {seeds} seeds a side a difference of {least:.4f} is found with 80 %"
        f" chance (two-sided Welch, p < {LEVEL:g})."
    ]
