"""Pages: nothing in them comes from elsewhere or is more than text; equal input gives equal pages."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from pgolf.report.html import html_page
from pgolf.report.markdown import markdown_page
from tests.unit.report_stand_ins import HOSTILE, report_of_everything

_EMPTY = {"meta", "link"}


class _Reader(HTMLParser):
    """What a browser would see: tags, texts; complains about tags that do not match."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def page() -> str:
    return html_page(report_of_everything())


def test_hostile_text_stays_text(page: str) -> None:
    seen = _Reader(page)
    assert not seen.open
    tags = [tag for tag, _ in seen.tags]
    assert tags.count("script") == 1
    assert tags.count("title") == 1 + len(re.findall("<title", page[page.index("<body") :]))
    assert not {"img", "iframe", "object", "base"} & set(tags)
    assert all(not name.startswith("on") for _, attributes in seen.tags for name in attributes)
    assert sum(HOSTILE in text for text in seen.texts) >= 20
    assert "owned'</script>" not in page


def test_nothing_is_loaded(page: str) -> None:
    seen = _Reader(page)
    for _, attributes in seen.tags:
        assert set(attributes).isdisjoint({"src", "srcset", "action", "background", "xlink:href"})
        assert (attributes.get("href") or "#").startswith(("#", "data:,"))
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in page


def test_the_policy_names_the_only_script(page: str) -> None:
    import base64
    import hashlib

    script = page[page.rindex("<script>") + len("<script>") : page.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page


def test_identifiers_are_unique_and_links_lead_somewhere(page: str) -> None:
    seen = _Reader(page)
    names = [attributes["id"] for _, attributes in seen.tags if "id" in attributes]
    assert len(names) == len(set(names))
    for _, attributes in seen.tags:
        if (target := attributes.get("href") or "").startswith("#"):
            assert target[1:] in names
        for name in (attributes.get("aria-labelledby") or "").split():
            assert name in names


def test_pages_are_deterministic(page: str) -> None:
    assert html_page(report_of_everything()) == page
    assert markdown_page(report_of_everything()) == markdown_page(report_of_everything())


def test_numbers_of_a_table_and_their_bars(page: str) -> None:
    assert '<td class=n>1,234</td><td class=bar><i style="width:100.0%"></i></td>' in page
    assert '<td class=n>0.5000</td><td class=bar><i style="width:0.0%"></i></td>' in page
    assert "<td class=n>-</td>" in page


def test_text_of_markdown_stays_text() -> None:
    text = markdown_page(report_of_everything("<script>x</script> | ```` `"))
    outside = re.sub(r"(?ms)^(`{3,})\w*\n.*?^\1$", "", text)
    assert "<script" not in outside
    assert "&lt;script>x" in outside
    assert "\\|" in outside
    # A fence is longer than any inside, so it ends where it should.
    assert "`````text" in text
