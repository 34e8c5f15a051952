"""A report with a block of every kind, whose texts try to break out of the page."""

from __future__ import annotations

from dataclasses import replace

from pgolf.report.content import (
    Bars,
    Card,
    Interval,
    Intervals,
    LineChart,
    Listing,
    Passage,
    Passages,
    Prose,
    Report,
    Section,
    Series,
    Statements,
    Table,
    Waterfall,
)

HOSTILE = (
    "</title></style></script></svg></pre><script>document.title='owned'</script>"
    "<img src=https://example.com/x.png onerror=\"document.title='owned'\">'\"><a href='javascript:1'>"
    "&amp;```|*_"
)
LONG = "supercalifragilisticexpialidocious" * 12


def report_of_everything(text: str = HOSTILE) -> Report:
    """Every kind of block, with ``text`` wherever a text can stand."""
    rows = [(text, 1234, None), (LONG, 0.5, 2), ("word", float("nan"), 3)]
    table = Table(text, (text, "number", "none"), rows, text, bar="number")
    points = [(float(x), 5.0 - x / 10) for x in range(1, 30)]
    chart = LineChart(
        text,
        text,
        text,
        [Series(text, points, "line"), Series("dots", points[::5], "dots", 9), Series("none", [])],
        band=[(1.0, 4.0, 5.0), (29.0, 2.0, 3.0)],
        log_x=True,
        note=text,
    )
    blocks = [
        Prose(text, "good", strong=True),
        Statements([text, LONG]),
        Statements([text], text, folded=True),
        Table(text, ("", ""), [(text, LONG)]),
        Listing([text, LONG * 3], title=text, folded=True),
        table,
        replace(table, folded=True),
        chart,
        Waterfall(text, text, (text, 2.0), [(text, 1.9), ("up", 1.95)], text, text),
        Bars(
            text, text, [(text, text, 10.0), (text, "b", 3.0), ("other", "c", 0.0), ("third", "d", 2.0)], text
        ),
        Intervals(
            text, text, [Interval(text, 1.5, 1.0, 2.0, [1.4, 1.6]), Interval("b", 2.0, None, None, [2.0])]
        ),
        Passages(text, [Passage(text, [(text, 3.0), ("a\nb\t", 20.0), ("", -0.1)])], text, legend=True),
        Passages(text, [Passage(text, [(text, None)]), Passage("long", [(LONG, None)])], text),
    ]
    cards = [
        Card(text, text, text, 0.5),
        Card("bad", LONG, mood="bad", share=1.5),
        Card("good", "1", mood="good"),
    ]
    return Report(text, text, cards, [Section("one", text, blocks), Section("two", "Two", [Prose("end")])])
