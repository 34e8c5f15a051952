"""What text costs whom: by document, by class of token, by place in the document, and passage by passage.

The text is graded once more and held against the ledger of the run. A ledger has the sum of every block only.
Here the same grader asks the same scorer for the same blocks, and what it answers is kept. So the costs
belong to the ledger's score, and where they do not add up to its entries that is noticed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgolf.compress.weights import Weights
from pgolf.data.dataset import Dataset
from pgolf.data.operators import OPERATORS
from pgolf.data.shards import Tokens
from pgolf.data.tokenizer import Tokenizer
from pgolf.errors import PgolfError
from pgolf.evaluate.build import build_scorer
from pgolf.evaluate.ledger import Entry, Ledger, read_ledger
from pgolf.evaluate.protocol import Scorer, grade
from pgolf.evaluate.weights import memory_for
from pgolf.optim.place import place
from pgolf.report.content import Block, LineChart, Passage, Passages, Prose, Section, Series, Table, Value
from pgolf.runtime.terminal import plain

# An entry's nats on the machine that wrote it and here differ by rounding: relative to the entry's nats.
_ROUNDING = 1e-5
# Beyond this the ledger is of something else, not of another device.
_SAME_MODEL = 2e-2


@dataclass(frozen=True)
class TargetCosts:
    """Targets of a stream, from its first on, with what each cost."""

    weights: str
    """What scored them, in words."""
    mode: str
    tokens: Tokens
    """(n + 1,) uint16: the targets, with the token before them."""
    nats: NDArray[np.float64]
    """(n,) of each target."""
    bytes: NDArray[np.int64]
    """(n,) of text that each target stands for."""
    announced: int
    """Targets of the whole stream."""
    check: str
    """How they relate to the ledger, as a sentence."""
    agrees: bool
    """Whether all entries of the ledger are met within rounding; False also where there is no ledger."""

    def bits(self, where: slice | NDArray[np.bool_] = slice(None)) -> float:
        """What some of the targets cost together."""
        return float(self.nats[where].sum() / np.log(2))

    def size(self, where: slice | NDArray[np.bool_] = slice(None)) -> int:
        """Bytes of text that some of the targets stand for."""
        return int(self.bytes[where].sum())


def score_targets(
    weights: Weights,
    dataset: Dataset,
    mode: str,
    limit: int,
    ledger: Path | None,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> TargetCosts:
    """Grade the first targets of the validation split again and keep what each costs.

    At most ``limit`` targets are scored; with a ledger, which is that of the run's evaluation in this mode,
    only whole entries of it, but at least one. ``progress`` is told (targets scored, targets to score).
    PgolfError where tokenizer or text are not the ledger's, or the costs cannot be.
    """
    weights.check_data(dataset)
    stream, byte_counts = dataset.validation_text(weights.recipe.evaluation_length)
    header, entries = read_ledger(ledger) if ledger is not None else ({}, [])
    announced = int(header.get("targets", len(stream) - 1))
    if announced > len(stream) - 1:
        raise PgolfError(f"{ledger}: is of {announced:,} targets, {dataset.folder} has {len(stream) - 1:,}")
    count = min(limit, announced)
    if entries:
        ends = [entry.first + entry.targets for entry in entries]
        count = max([end for end in ends if end <= count], default=ends[0])
    memory = memory_for(weights, weights.recipe, mode, dataset.tokenizer)
    network = place(weights.model(), weights.recipe, device)
    scorer = build_scorer(network, weights.recipe, mode, memory=memory)
    heard, again = overheard(scorer, announced), Ledger()
    grade(scorer, stream[: count + 1], byte_counts[:count], again, progress=progress)
    if ledger is not None and entries and not header.get("strict"):
        check, agrees = _compared(ledger, entries, again.entries)
    else:
        strict, none = "its ledger was written target by target", "the run has no ledger of this evaluation"
        reason, agrees = strict if ledger else none, False
        check = f"Scored for this report; not held against a ledger ({reason})."
    kind = "artifact" if weights.kind == "artifact" else "averaged weights"
    sizes, nats = byte_counts[:count].astype(np.int64), torch.cat(heard).numpy()
    return TargetCosts(kind, mode, stream[: count + 1], nats, sizes, announced, check, agrees)


def overheard(scorer: Scorer, announced: int) -> list[Tensor]:
    """Where what each target costs is kept from now on, block by block.

    The scorer is told of the whole stream, also where only its beginning is scored: schedules depend on it.
    """
    heard: list[Tensor] = []
    begin, losses = scorer.begin, scorer.losses

    def answer(block: Tensor) -> Tensor:
        found = losses(block)
        heard.append(found.detach().cpu().double())
        return found

    scorer.begin = lambda first, targets: begin(first, announced)  # type: ignore[method-assign]
    scorer.losses = answer  # type: ignore[method-assign]
    return heard


def _compared(ledger: Path, entries: Sequence[Entry], again: Sequence[Entry]) -> tuple[str, bool]:
    """Hold a second grading against the ledger's entries: what to say, and whether they agree."""
    largest = worst = 0.0
    for old, new in zip(entries, again, strict=False):
        if (old.first, old.targets, old.bytes, old.text) != (new.first, new.targets, new.bytes, new.text):
            which = f"targets {old.first} to {old.first + old.targets} are not those of the data"
            raise PgolfError(f"{ledger}: {which}; pass the --data of the run, or --no-score")
        difference = abs(old.nats - new.nats)
        largest, worst = max(largest, difference), max(worst, difference / max(abs(old.nats), 1e-9))
    if worst > _SAME_MODEL:
        differs = f"is of another model: an entry costs {100 * worst:.1f} % more or less here"
        raise PgolfError(f"{ledger}: {differs}; evaluate the run again, or pass --no-score")
    found = f"{len(again):,} {'entry' if len(again) == 1 else 'entries'} of {ledger.name}"
    if worst > _ROUNDING:
        size = f"{largest:.2g} nats ({100 * worst:.3f} %)"
        said = f"The sums differ from the {found} by up to {size}, as on another device"
        return f"{said}; what follows is of this pass.", False
    how = f"within {largest:.1g} nats of each" if largest else "to the last digit"
    return f"Scored again for this report: the sums are those of the {found}, {how}.", True


CLASSES = (
    *("document start", "byte fallback", "white space", "digits", "punctuation", "word, lower case"),
    *("word, Capitalised", "word, UPPER CASE", "word part", "word part, upper case", "not ASCII", "mixed"),
    "capital letters",
)
"""Every piece is in one of these; a word begins with a space, a word part does not."""


class Piece(NamedTuple):
    """One entry of the vocabulary."""

    text: bytes
    """What it stands for in a text, UTF-8, with its leading space; empty for control pieces, and a mark for
    operators of CaseOps, which have no bytes."""
    kind: str
    """One of ``CLASSES``."""


def pieces_of(tokenizer: Tokenizer) -> list[Piece]:
    """Every piece of a tokenizer, by id."""
    operators = () if tokenizer.transform == "none" else OPERATORS
    pieces = []
    for part, is_byte in zip(tokenizer.parts, tokenizer.is_byte, strict=True):
        if part is None:
            pieces.append(Piece(b"", "document start"))
        elif is_byte or (text := part.decode(errors="replace")).encode() != part:
            pieces.append(Piece(part, "byte fallback"))  # Or a part of a character.
        elif text in operators:
            pieces.append(Piece(_OPERATOR_MARKS[operators.index(text)].encode(), "capital letters"))
        else:
            pieces.append(Piece(part, kind_of(text)))
    return pieces


def kind_of(text: str) -> str:
    """The class of a piece's text, with its leading space."""
    word = text.removeprefix(" ")
    if not word.strip():
        return "white space"
    if not word.isascii():
        return "not ASCII"
    if word.isdigit():
        return "digits"
    if not any(character.isalnum() for character in word):
        return "punctuation"
    if not word.isalpha():
        return "mixed"
    if not text.startswith(" "):
        return "word part, upper case" if word.isupper() else "word part"
    if word.isupper() and len(word) > 1:
        return "word, UPPER CASE"
    return "word, Capitalised" if word[0].isupper() else "word, lower case"


Groups = NDArray[np.integer]
PASSAGES, PASSAGE_TARGETS = 4, 64
_MOST_DOCUMENTS, _MOST_POINTS = 12, 1000
_START_MARK = "\u00b6"
# Of the next letter, of the word, of a letter inside it.
_OPERATOR_MARKS = ("\u2191", "\u21d1", "\u2191")
_OPENING_LETTERS, _LONGEST_TOKEN = 64, 9
_GROUPED = ("bits per byte", "share of bits", "share of bytes", "bits per token", "tokens", "bytes")


def documents_of(costs: TargetCosts, start: int) -> list[slice]:
    """Cut the targets into documents, after every target that is ``start`` (BOS).

    The start of the next document is so the last target of each. A document that begins or ends outside of
    the targets is cut there.
    """
    targets = costs.tokens[1:]
    ends = [int(index) + 1 for index in np.flatnonzero(targets == start)]
    edges = [0, *(end for end in ends if end < len(targets)), len(targets)]
    return [slice(first, end) for first, end in itertools.pairwise(edges)]


def text_section(costs: TargetCosts, pieces: Sequence[Piece], start: int) -> Section:
    """Everything about the text as a section."""
    documents = documents_of(costs, start)
    count, size = len(costs.nats), costs.size()
    part = f"All {count:,}" if count == costs.announced else f"The first {count:,} of {costs.announced:,}"
    intro = (
        f"{part} targets of the validation text, {size:,} bytes in {len(documents):,} documents, "
        f"{costs.mode} evaluation of the {costs.weights}: {costs.bits() / max(size, 1):.4f} bits per byte. "
        f"{costs.check}"
    )
    blocks: list[Block] = [
        Prose(intro, "good" if costs.agrees else "plain"),
        class_table(costs, pieces),
        length_table(costs),
        place_chart(costs, documents),
        document_chart(costs, documents),
        *document_tables(costs, documents, pieces),
        *passages(costs, documents, pieces),
    ]
    return Section("text", "What the text costs", blocks)


def class_table(costs: TargetCosts, pieces: Sequence[Piece]) -> Table:
    """Bits by class of token."""
    kinds = np.array([CLASSES.index(piece.kind) for piece in pieces])[costs.tokens[1:]]
    note = (
        "Bits divided by the bytes of the class; document starts and operators for capital letters have no "
        "bytes, but count in the score."
    )
    return _by_group(costs, "By class of token", "class", kinds, CLASSES, note)


def length_table(costs: TargetCosts) -> Table:
    """Bits by how many bytes a token stands for."""
    names = [*map(str, range(_LONGEST_TOKEN)), f"{_LONGEST_TOKEN} and more"]
    lengths = np.minimum(costs.bytes, _LONGEST_TOKEN)
    return _by_group(costs, "By bytes of the token", "bytes of the token", lengths, names)


def _by_group(
    costs: TargetCosts, title: str, what: str, groups: Groups, names: Sequence[str], note: str = ""
) -> Table:
    all_bits, all_bytes = max(costs.bits(), 1e-9), max(costs.size(), 1)
    rows: list[list[Value]] = []
    for index, name in enumerate(names):
        inside = groups == index
        count, size, bits = int(inside.sum()), costs.size(inside), costs.bits(inside)
        if count:
            each = bits / size if size else None
            rows.append([name, each, bits / all_bits, size / all_bytes, bits / count, count, size])
    return Table(title, (what, *_GROUPED), rows, note, digits=3, bar="share of bits")


def place_chart(costs: TargetCosts, documents: Sequence[slice]) -> LineChart:
    """Bits per byte by how far into its document a target lies: what context is worth."""
    place = np.concatenate([np.arange(document.stop - document.start) for document in documents])
    edges = [0, *(2**power for power in range(2, 13)), len(place) + 4096]
    points = []
    for low, high in itertools.pairwise(edges):
        inside = (place >= low) & (place < high)
        if size := costs.size(inside):
            points.append((float(place[inside].mean()) + 1, costs.bits(inside) / size))
    note = "Each point is the mean of the targets up to the next point's place."
    series, names = [Series("bits per byte", points, "dots")], ("targets into the document", "bits per byte")
    return LineChart("By place in the document", *names, series, log_x=True, note=note)


def document_chart(costs: TargetCosts, documents: Sequence[slice]) -> LineChart:
    """A point per document: its bits per byte by its size."""
    sizes = [(costs.size(document), document) for document in documents]
    points = [(float(size), costs.bits(document) / size) for size, document in sizes if size]
    series = [Series("document", sorted(points[:_MOST_POINTS]), "points")]
    note = f"The first {_MOST_POINTS:,} documents." if len(points) > _MOST_POINTS else ""
    names = ("bytes of the document", "bits per byte")
    return LineChart("Documents by size", *names, series, log_x=True, note=note)


def document_tables(costs: TargetCosts, documents: Sequence[slice], pieces: Sequence[Piece]) -> list[Table]:
    """Documents from the hardest to the easiest; of many the two ends."""
    rows: list[list[Value]] = []
    for number, document in enumerate(documents, 1):
        if size := costs.size(document):
            bits, count = costs.bits(document), document.stop - document.start
            opening = opening_of(costs, document, pieces)
            rows.append([number, bits / size, opening, count, size, round(bits)])
    rows.sort(key=lambda row: (-float(row[1] or 0.0), row[0]))
    shown = {"By document, hardest first": rows}
    if len(rows) > 2 * _MOST_DOCUMENTS:
        hardest = f"The {_MOST_DOCUMENTS} hardest of {len(rows):,} documents"
        easiest = rows[-_MOST_DOCUMENTS:][::-1]
        shown = {hardest: rows[:_MOST_DOCUMENTS], f"The {_MOST_DOCUMENTS} easiest": easiest}
    columns = ("document", "bits per byte", "begins", "targets", "bytes", "bits")
    return [Table(title, columns, part, digits=3, bar="bits per byte") for title, part in shown.items()]


def opening_of(costs: TargetCosts, document: slice, pieces: Sequence[Piece]) -> str:
    """The first letters of a document, on one line."""
    tokens = costs.tokens[1:][document][: 2 * _OPENING_LETTERS]
    text = b"".join(pieces[token].text for token in tokens).decode(errors="replace")
    line = " ".join(visible(text).split())
    return line if len(line) <= _OPENING_LETTERS else line[: _OPENING_LETTERS - 1] + "\N{HORIZONTAL ELLIPSIS}"


def passages(costs: TargetCosts, documents: Sequence[slice], pieces: Sequence[Piece]) -> list[Passages]:
    """The hardest and the easiest stretches that lie in one document and do not overlap."""
    windows = []
    for number, document in enumerate(documents, 1):
        for first in range(document.start, document.stop, PASSAGE_TARGETS // 2):
            part = slice(first, min(first + PASSAGE_TARGETS, document.stop))
            size = costs.size(part)
            if part.stop - first >= PASSAGE_TARGETS // 2 and size >= PASSAGE_TARGETS // 4:
                windows.append((costs.bits(part) / size, part, number))
    note = "The darker, the more bits a token took; the pointer shows how many. ¶ starts the next document."
    found, taken = [], list[slice]()
    for title, sign in (("Hardest passages", -1), ("Easiest passages", 1)):
        chosen: list[Passage] = []
        for bpb, part, number in sorted(windows, key=lambda window: (sign * window[0], window[1].start)):
            free = all(part.start >= other.stop or other.start >= part.stop for other in taken)
            if free and len(chosen) < PASSAGES:
                taken.append(part)
                where = f"document {number}, targets {part.start:,} to {part.stop:,}"
                chosen.append(Passage(f"{bpb:.3f} bits per byte, {where}", spelled(costs, part, pieces)))
        if chosen:
            found.append(Passages(title, chosen, note if sign < 0 else "", legend=sign < 0))
    return found


def spelled(costs: TargetCosts, part: slice, pieces: Sequence[Piece]) -> list[tuple[str, float | None]]:
    """The text of targets with the bits of each; a character that is spelled in bytes is taken together."""
    found: list[tuple[bytes, float]] = []
    inside_character = False
    for token, nats in zip(costs.tokens[1:][part], costs.nats[part], strict=True):
        text, kind = pieces[int(token)]
        bits, spelling = float(nats) / math.log(2), kind == "byte fallback"
        if spelling and inside_character and text[0] & 0xC0 == 0x80:
            found[-1] = (found[-1][0] + text, found[-1][1] + bits)
        else:
            found.append((text or _START_MARK.encode(), bits))
        inside_character = spelling
    return [(visible(text.decode(errors="replace")), bits) for text, bits in found]


def visible(text: str) -> str:
    """Text without the control and format characters that disturb a page or turn its direction."""
    return plain(text, keep="\n\t")
