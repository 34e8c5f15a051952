"""Pages in a real browser: nothing is loaded, nothing complains, nothing is wider than a phone, light and
dark.
"""

from __future__ import annotations

import html
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from pgolf.report.content import (
    Bars,
    Interval,
    Intervals,
    LineChart,
    Report,
    Section,
    Series,
    Waterfall,
)
from pgolf.report.html import html_page
from tests.e2e.browser import BROWSER
from tests.unit.report_stand_ins import report_of_everything

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")

FLAGS = [
    *(
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-extensions",
    ),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
    *("--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--virtual-time-budget=2000"),
]
_ERRANDS = r"https?://([\w-]+\.)*(google\w*|gvt1)\.com[:/]"
PHONE = 360
# A browser's window cannot be as narrow as a phone; a frame can. A browser takes seconds to start, so one
# looks at all pages in all widths. Of each: what is too wide, and of charts every text that leaves its chart,
# or lies on a bar: what is filled with a colour of the page.
FRAMES = """<!doctype html><body style="margin:0"><script>
const found = [];
const look = (page, width) => {
  page.querySelectorAll("details").forEach(part => part.open = true);
  const box = part => part.getBoundingClientRect();
  const wide = [...page.querySelectorAll("body *")].filter(part =>
    !part.closest(".scroll, pre, svg, .text") && box(part).right > width + 1);
  const inside = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
  const wrong = [];
  page.querySelectorAll("figure svg").forEach(chart => {
    const edges = box(chart);
    const filled = bar => /fill: var/.test(bar.style.cssText);
    const bars = [...chart.querySelectorAll("path[clip-path]")].filter(filled);
    chart.querySelectorAll("text").forEach(text => {
      const own = box(text);
      if (own.left < edges.left - 1 || own.right > edges.right + 1 || own.bottom > edges.bottom + 1
          || own.top < edges.top - 1) wrong.push("leaves: " + text.textContent);
      if (bars.some(bar => inside(own, box(bar)))) wrong.push("on a bar: " + text.textContent);
    });
  });
  return {width: page.documentElement.scrollWidth, title: page.title, wrong: wrong,
    wide: wide.map(part => part.outerHTML.slice(0, 80)), sections: page.querySelectorAll("section").length,
    button: !page.querySelector("#theme").hidden};
};
const pages = PAGES;
pages.forEach(([content, width], place) => {
  const frame = document.createElement("iframe");
  frame.style.border = 0;
  frame.width = width;
  frame.height = 4000;
  frame.onload = () => {
    found[place] = look(frame.contentDocument, width);
    if (Object.keys(found).length == pages.length) document.body.dataset.found = JSON.stringify(found);
  };
  frame.srcdoc = content;
  document.body.append(frame);
});
</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html_page(report_of_everything()), encoding="utf-8")
    return path


def browse(path: Path, folder: Path, *flags: str) -> tuple[str, list[str], list[str]]:
    """Open a page; returns what --dump-dom prints, what the console says, and the addresses that were asked
    for.
    """
    log = folder / "net.json"
    assert BROWSER is not None
    command = [
        BROWSER,
        *FLAGS,
        f"--user-data-dir={folder / 'profile'}",
        f"--log-net-log={log}",
        *flags,
        path.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    console = re.findall(r"CONSOLE.*", done.stderr)
    asked = re.findall(
        r'"url":"((?:https?|wss?|ftp):[^"]*)"', log.read_text(encoding="utf-8", errors="replace")
    )
    # A browser has errands of its own, such as the time.
    return (
        done.stdout,
        console,
        [url for url in asked if not re.match(_ERRANDS, url)],
    )


def test_a_page_loads_nothing_and_runs_nothing_foreign(page: Path, tmp_path: Path) -> None:
    seen, console, asked = browse(page, tmp_path, "--dump-dom")
    assert console == []
    assert asked == []
    title = re.search(r"<title>(.*?)</title>", seen)
    assert title is not None
    assert html.unescape(title[1]).endswith("pgolf report")
    assert "<img" not in seen


def test_the_watch_sees_what_a_page_loads(tmp_path: Path) -> None:
    path = tmp_path / "bad.html"
    path.write_text("<img src=http://example.com/x.png><script>console.error('seen')</script>")
    _, console, asked = browse(path, tmp_path, "--dump-dom")
    assert any("seen" in line for line in console)
    assert "http://example.com/x.png" in asked


def charts_page() -> str:
    """Charts with names, numbers and places that leave little room."""
    points = [(float(x), 1.1 + 1 / (x + 1)) for x in range(0, 20_000, 500)]
    name = "train.steps=20000, train.warmdown_steps=12000, model.value_residual=False"
    line = LineChart("line", name, "bits per byte", [Series("sliding", points, "dots")])
    falls = [("quantization", 1.8609), ("sliding windows", 1.8574), ("memory", 1.321)]
    fall = Waterfall("fall", "bits per byte", ("averaged float", 1.8575), falls, "final")
    sizes = [
        ("attention", "a", 3_496_000.0),
        ("embedding", "b", 12_207_616.0),
        ("a name without end", "c", 1.0),
    ]
    rows = [Interval(name, 1.3210, 1.3, 1.35, [1.31, 1.332]), Interval("base", 1.35, None, None, [1.35])]
    charts = [line, fall, Bars("bars", "bytes", sizes), Intervals("by cell", "TTT bits per byte", rows)]
    return html_page(Report("charts", "", [], [Section("one", "One", charts)]))


@pytest.fixture(scope="module")
def seen(page: Path) -> tuple[dict[tuple[str, int], Any], list[str]]:
    """What is found of a page, "all" or "charts", in a width; and what the console says."""
    pages, folder = {"all": page.read_text(encoding="utf-8"), "charts": charts_page()}, page.parent
    asked = [("all", PHONE), ("all", 800), ("charts", PHONE), ("charts", 1280)]
    # "</" would end the script that holds the pages.
    content = json.dumps([(pages[name], width) for name, width in asked]).replace("</", "<\\/")
    path = folder / "frames.html"
    path.write_text(FRAMES.replace("PAGES", content), encoding="utf-8")
    printed, console, _ = browse(path, folder, "--dump-dom", "--window-size=1400,900")
    found = json.loads(html.unescape(re.search(r'data-found="([^"]*)"', printed)[1]))
    return dict(zip(asked, found, strict=True)), console


@pytest.mark.parametrize("width", [PHONE, 800])
def test_nothing_is_wider_than_the_screen(seen: tuple[Any, list[str]], width: int) -> None:
    found = seen[0]["all", width]
    assert found["wide"] == []
    assert found["width"] <= width
    assert found["sections"] == 2
    assert found["button"]
    assert found["title"] != "owned"
    assert seen[1] == []


@pytest.mark.parametrize("width", [PHONE, 1280])
def test_no_label_is_clipped_and_none_lies_on_a_bar(seen: tuple[Any, list[str]], width: int) -> None:
    assert seen[0]["charts", width]["wrong"] == []


@pytest.mark.parametrize(("scheme", "dark"), [("0", True), ("1", False)])
def test_light_and_dark(page: Path, tmp_path: Path, scheme: str, dark: bool) -> None:
    picture = tmp_path / "page.png"
    shot = f"--screenshot={picture}"
    browse(page, tmp_path, shot, "--window-size=800,600", f"--blink-settings=preferredColorScheme={scheme}")
    corner = imread(picture)[5, 5, :3].mean()
    assert corner < 0.2 if dark else corner > 0.9
