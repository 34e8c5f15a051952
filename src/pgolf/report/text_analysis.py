"""What text costs whom: by document, by class of token, by place in the document, and passage by passage."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pgolf.report.content import LineChart, Passage, Passages, Prose, Section, Series, Sheet
from pgolf.report.findings import Table
from pgolf.report.pieces import CLASSES, Piece
from pgolf.report.targets import TargetCosts
from pgolf.runtime.terminal import plain

PASSAGE_TARGETS = 64
PASSAGES = 4
_MOST_DOCUMENTS = 12
_MOST_POINTS = 1000
_START_MARK = "\u00b6"
_OPENING_LETTERS = 64


@dataclass(frozen=True)
class Document:
    """Targets [first, end) that lie in one document; its successor's start (BOS) is the last of them."""

    first: int
    end: int


def documents_of(costs: TargetCosts, start: int) -> list[Document]:
    """Cut the targets at every target that is ``start`` (BOS). What begins or ends outside of them is cut
    there.
    """
    targets = costs.tokens[1:]
    ends = [int(index) + 1 for index in np.flatnonzero(targets == start)]
    edges = [0, *(end for end in ends if end < len(targets)), len(targets)]
    return [Document(first, end) for first, end in itertools.pairwise(edges)]


def text_section(costs: TargetCosts, pieces: Sequence[Piece], start: int) -> Section:
    """Everything about the text as a section."""
    documents = documents_of(costs, start)
    count = len(costs.nats)
    part = f"All {count:,}" if count == costs.announced else f"The first {count:,} of {costs.announced:,}"
    intro = (
        f"{part} targets of the validation text, {int(costs.bytes.sum()):,} bytes in {len(documents):,} documents, "
        f"{costs.mode} evaluation of the {costs.weights}: {costs.bpb:.4f} bits per byte. {costs.check}"
    )
    return Section(
        "text",
        "What the text costs",
        [
            Prose(intro, "good" if costs.agrees else "plain"),
            Sheet(class_table(costs, pieces), bar="share of bits"),
            Sheet(length_table(costs), bar="share of bits"),
            place_chart(costs, documents),
            document_chart(costs, documents),
            *document_sheets(costs, documents, pieces),
            *passages(costs, documents, pieces),
        ],
    )


def class_table(costs: TargetCosts, pieces: Sequence[Piece]) -> Table:
    """Bits by class of token."""
    kinds = np.array([CLASSES.index(piece.kind) for piece in pieces])[costs.tokens[1:]]
    rows = _grouped_rows(costs, kinds, list(CLASSES))
    note = "Bits per byte of a class divide its bits by its bytes; a document start has no bytes, but counts in the score."
    return Table("By class of token", ("class", *_GROUPED), rows, note, digits=3)


def length_table(costs: TargetCosts) -> Table:
    """Bits by how many bytes a token stands for."""
    longest = 9
    names = [f"{size}" for size in range(longest)] + [f"{longest} and more"]
    rows = _grouped_rows(costs, np.minimum(costs.bytes, longest), names)
    return Table("By bytes of the token", ("bytes of the token", *_GROUPED), rows, digits=3)


_GROUPED = ("bits per byte", "share of bits", "share of bytes", "bits per token", "tokens", "bytes")


def _grouped_rows(
    costs: TargetCosts, groups: NDArray[np.integer], names: Sequence[str]
) -> list[list[str | float | None]]:
    bits, all_bytes = costs.nats / math.log(2), max(int(costs.bytes.sum()), 1)
    rows: list[list[str | float | None]] = []
    for index, name in enumerate(names):
        inside = groups == index
        count, size, cost = int(inside.sum()), int(costs.bytes[inside].sum()), float(bits[inside].sum())
        if count:
            share = cost / max(float(bits.sum()), 1e-9)
            rows.append(
                [name, cost / size if size else None, share, size / all_bytes, cost / count, count, size]
            )
    return rows


def place_chart(costs: TargetCosts, documents: Sequence[Document]) -> LineChart:
    """Bits per byte by how far into its document a target lies: what context is worth."""
    place = np.concatenate([np.arange(document.end - document.first) for document in documents])
    edges = [0, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
    points = []
    for low, high in zip(edges, [*edges[1:], len(place) + 1], strict=True):
        inside = (place >= low) & (place < high)
        size = int(costs.bytes[inside].sum())
        if size:
            points.append(
                (float(place[inside].mean()) + 1, float(costs.nats[inside].sum()) / math.log(2) / size)
            )
    return LineChart(
        "By place in the document",
        "targets into the document",
        "bits per byte",
        [Series("bits per byte", points, "dots")],
        log_x=True,
        note="Each point is the mean of the targets up to the next point's place.",
    )


def document_chart(costs: TargetCosts, documents: Sequence[Document]) -> LineChart:
    """A point per document: its bits per byte by its size."""
    points = []
    for document in documents:
        inside = slice(document.first, document.end)
        if size := int(costs.bytes[inside].sum()):
            points.append((float(size), float(costs.nats[inside].sum()) / math.log(2) / size))
    series = Series("document", sorted(points[:_MOST_POINTS]), "points")
    note = f"The first {_MOST_POINTS:,} documents." if len(points) > _MOST_POINTS else ""
    return LineChart(
        "Documents by size", "bytes of the document", "bits per byte", [series], log_x=True, note=note
    )


def document_sheets(
    costs: TargetCosts, documents: Sequence[Document], pieces: Sequence[Piece]
) -> list[Sheet]:
    """Documents from the hardest to the easiest; of many the two ends."""
    rows: list[list[str | float | None]] = []
    for number, document in enumerate(documents):
        inside = slice(document.first, document.end)
        size = int(costs.bytes[inside].sum())
        if size:
            bits = float(costs.nats[inside].sum()) / math.log(2)
            opening = opening_of(costs, document, pieces)
            rows.append([number + 1, bits / size, opening, document.end - document.first, size, round(bits)])
    rows.sort(key=lambda row: (-float(row[1] or 0.0), row[0]))
    columns = ("document", "bits per byte", "begins", "targets", "bytes", "bits")
    if len(rows) <= 2 * _MOST_DOCUMENTS:
        shown = [("By document, hardest first", rows)]
    else:
        shown = [
            (f"The {_MOST_DOCUMENTS} hardest of {len(rows):,} documents", rows[:_MOST_DOCUMENTS]),
            (f"The {_MOST_DOCUMENTS} easiest", rows[-_MOST_DOCUMENTS:][::-1]),
        ]
    tables = [Table(title, columns, part, digits=3) for title, part in shown]
    return [Sheet(table, bar="bits per byte") for table in tables]


def opening_of(costs: TargetCosts, document: Document, pieces: Sequence[Piece]) -> str:
    """The first letters of a document, on one line."""
    tokens = costs.tokens[1:][document.first : min(document.end, document.first + 2 * _OPENING_LETTERS)]
    text = b"".join(pieces[token].text for token in tokens).decode(errors="replace")
    line = " ".join(visible(text).split())
    return line if len(line) <= _OPENING_LETTERS else line[: _OPENING_LETTERS - 1] + "\N{HORIZONTAL ELLIPSIS}"


def passages(costs: TargetCosts, documents: Sequence[Document], pieces: Sequence[Piece]) -> list[Passages]:
    """The hardest and the easiest stretches that lie in one document and do not overlap."""
    windows = []
    for number, document in enumerate(documents):
        for first in range(document.first, document.end, PASSAGE_TARGETS // 2):
            end = min(first + PASSAGE_TARGETS, document.end)
            size = int(costs.bytes[first:end].sum())
            if end - first >= PASSAGE_TARGETS // 2 and size >= PASSAGE_TARGETS // 4:
                windows.append(
                    (float(costs.nats[first:end].sum()) / math.log(2) / size, first, end, number + 1)
                )
    parts = []
    taken: list[tuple[int, int]] = []
    for title, hardest in (("Hardest passages", True), ("Easiest passages", False)):
        chosen: list[Passage] = []
        for bpb, first, end, number in sorted(
            windows, key=lambda window: (-window[0] if hardest else window[0], window[1])
        ):
            if len(chosen) == PASSAGES or any(
                first < other_end and other < end for other, other_end in taken
            ):
                continue
            taken.append((first, end))
            head = f"{bpb:.3f} bits per byte, document {number}, targets {first:,} to {end:,}"
            chosen.append(Passage(head, spelled(costs, first, end, pieces)))
        note = (
            "The darker, the more bits a token took; its number is shown under the pointer. ¶ starts the next document."
            if hardest
            else ""
        )
        if chosen:
            parts.append(Passages(title, chosen, note))
    return parts


def spelled(costs: TargetCosts, first: int, end: int, pieces: Sequence[Piece]) -> list[tuple[str, float]]:
    """The text of targets with the bits of each; a character that is spelled in bytes is taken together."""
    found: list[tuple[str, float]] = []
    held, held_bits = b"", 0.0
    bits = costs.nats / math.log(2)
    for index in range(first, end):
        piece = pieces[int(costs.tokens[index + 1])]
        if held and (piece.kind != "byte fallback" or _is_character_start(piece.text)):
            found.append((visible(held.decode(errors="replace")), held_bits))
            held, held_bits = b"", 0.0
        if piece.kind == "byte fallback":
            held, held_bits = held + piece.text, held_bits + float(bits[index])
        elif not piece.text:
            found.append((_START_MARK, float(bits[index])))
        else:
            found.append((visible(piece.text.decode(errors="replace")), float(bits[index])))
    return [*found, (visible(held.decode(errors="replace")), held_bits)] if held else found


def _is_character_start(byte: bytes) -> bool:
    return byte[0] & 0xC0 != 0x80


def visible(text: str) -> str:
    """Text without what would disturb a page: control and format characters, such as those that turn the
    direction.
    """
    return plain(text, keep="\n\t")
