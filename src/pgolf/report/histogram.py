"""The tables and the picture of an inspected artifact: how often codes occur, and where the bytes are."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pgolf.compress.container import MAGIC, MEMORY, TOKENIZER
from pgolf.compress.inspect import ArtifactInfo, TensorInfo
from pgolf.compress.stored import code_range
from pgolf.report.draw import COLORS, STYLE, new_figure, png
from pgolf.runtime.terminal import can_spell, plain

TENSOR_COLUMNS = ("tensor", "shape", "bits", "codes", "histogram", "entropy\nper code", "floats\nbytes")
GROUP_COLUMNS = ("group", "tensors", "weights", "codes\nbytes", "floats\nbytes", "bits per\nweight")
# Of what the header says alone.
HEADER_COLUMNS = (*TENSOR_COLUMNS[:3], TENSOR_COLUMNS[-1])
# What may be left out where there is little room, the least important first.
TENSOR_DROP = ("histogram", "floats\nbytes", "codes", "shape", "entropy\nper code")
GROUP_DROP = ("tensors", "floats\nbytes", "weights", "codes\nbytes")
BAR_WIDTH = 16
_BLOCKS, _ASCII_BLOCKS = " ▁▂▃▄▅▆▇█", " .:-=+*#@"


def blocks_for(encoding: str | None) -> str:
    """Nine characters of rising height that a text in this encoding can have."""
    return _BLOCKS if can_spell(_BLOCKS, encoding) else _ASCII_BLOCKS


def bars(counts: Sequence[int], width: int = BAR_WIDTH, blocks: str = _BLOCKS) -> str:
    """A histogram in a line of text: at most ``width`` blocks, each the mean of neighbouring counts.

    Heights are in eighths of the highest block; what occurs at all is never blank.
    """
    size = min(width, len(counts))
    edges = [index * len(counts) // size for index in range(size + 1)] if size else []
    means = [sum(counts[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    highest = max(means, default=0) or 1
    return "".join(blocks[max(round(8 * mean / highest), mean > 0)] for mean in means)


def tensor_rows(info: ArtifactInfo, blocks: str = _BLOCKS) -> list[tuple[str, ...]]:
    """A row per tensor, under ``TENSOR_COLUMNS``; where nothing was decoded, under
    ``HEADER_COLUMNS``.
    """
    rows: list[tuple[str, ...]] = []
    for tensor in info.tensors:
        shape = "x".join(map(str, tensor.shape)) or "scalar"
        width = f"{tensor.bits}" if tensor.dtype == "codes" else f"fp{tensor.bits}"
        codes = f"{tensor.code_min}..{tensor.code_max}" if tensor.code_min is not None else "-"
        entropy = f"{tensor.entropy_per_weight:.3f}" if tensor.entropy_per_weight is not None else "-"
        drawn = bars(_trimmed(tensor.counts, 0)[1], blocks=blocks)
        rows.append((tensor.name, shape, width, codes, drawn, entropy, f"{tensor.float_bytes:,}"))
    return [(*row[:3], row[-1]) for row in rows] if info.coded is None else rows


def group_rows(info: ArtifactInfo) -> list[tuple[str, ...]]:
    """A row per quantizer group, under ``GROUP_COLUMNS``, and one for the header."""
    found = [(name, g.tensors, g.weights, g.code_bytes, g.float_bytes) for name, g in info.groups().items()]
    tensors = sum(not tensor.correction for tensor in info.tensors)
    found.append(("all", tensors, info.weights, info.section("codes").size, info.section("floats").size))
    rows: list[tuple[str, ...]] = []
    for name, count, weights, codes, floats in found:
        each = f"{8 * (codes + floats) / weights:.3f}" if weights else "-"
        rows.append((name, f"{count:,}", f"{weights:,}", f"{codes:,.0f}", f"{floats:,.0f}", each))
    return rows


def summary_rows(info: ArtifactInfo) -> list[tuple[str, str]]:
    """Sizes, totals and digests as labelled lines."""
    held, codes, floats = info.artifact, info.section("codes"), info.section("floats")
    per_code = f"; {8 * codes.size / info.codes:.3f} bits per code" if info.codes else ""
    entropy = []
    if info.entropy_bytes is not None:
        difference = codes.size - info.entropy_bytes
        percent = f" ({100 * difference / info.entropy_bytes:+.2f} %)" if info.entropy_bytes else ""
        entropy = [
            ("order-0 entropy", f"{info.entropy_bytes:>12,.0f} bytes, summed over the tensors' codes"),
            ("codes against it", f"{difference:>+12,.0f} bytes{percent}"),
        ]
    memory = []
    if info.stored_tokens is not None:
        size = info.section(MEMORY).size
        cap = int(held.origin.get("memory", {}).get("cap", info.file_bytes))
        what = f"{info.stored_ngrams:,} n-grams, " if info.stored_ngrams else ""
        what += f"{info.stored_tokens:,} tokens of training text; {100 * size / cap:.1f} % of the cap"
        memory.append(("section memory", f"{size:>12,} bytes: {what}"))
    tokenizer = "not recorded"
    if held.tokenizer_digest:
        carried = info.section(TOKENIZER).size
        where = f"in the file: {carried:,} bytes" if carried else "not in the file"
        tokenizer = f"SHA-256 {held.tokenizer_digest[:16]}, {where}"
    return [
        ("format", f"version {MAGIC[-1]}, coder {held.coder}"),
        ("file", f"{info.file_bytes:>12,} bytes"),
        ("header", f"{held.header_bytes:>12,} bytes"),
        ("section codes", f"{codes.size:>12,} bytes of {codes.raw:,} raw{per_code}"),
        ("section floats", f"{floats.size:>12,} bytes of {floats.raw:,} raw"),
        *memory,
        *entropy,
        ("weights", f"{info.weights:>12,} at {info.bits_per_weight:.3f} bits each, header included"),
        ("recipe", f"{held.recipe.name or 'without a name'}, SHA-256 {held.recipe.digest()[:16]}"),
        ("tokenizer", tokenizer),
    ]


def draw_codes(info: ArtifactInfo, out: Path) -> None:
    """Draw a PNG: for each group how often its codes occur, and below where the file's bytes are."""
    import matplotlib

    panels: dict[str, list[TensorInfo]] = {}
    for tensor in info.tensors:
        if tensor.counts and tensor.entries:
            # Those of corrections are together in a panel of their own.
            panels.setdefault("corrections" if tensor.correction else tensor.group, []).append(tensor)
    columns = 2 if len(panels) in (2, 4) else 3
    lines = -(-len(panels) // columns)
    heights = [173] * lines + [80 + 22 * (len(info.groups()) + 1)]
    title = f"{Path(info.file).name}: {info.weights:,} weights in {info.file_bytes:,} bytes"
    with matplotlib.rc_context(STYLE | {"font.size": 9}):
        figure = new_figure(648, 44 + sum(heights), layout="constrained")
        grid = figure.add_gridspec(lines + 1, columns, height_ratios=heights)
        for index, (group, tensors) in enumerate(panels.items()):
            axis = figure.add_subplot(grid[index // columns, index % columns])
            _draw_group(axis, group, tensors)
            axis.set_ylabel("" if index % columns else "share of the codes (%)")
        _draw_bytes(figure.add_subplot(grid[lines, :]), info)
        figure.suptitle(plain(f"{title}, {info.bits_per_weight:.2f} bits per weight"), x=0.01, ha="left")
        png(figure, out)


def _draw_group(axis: Any, group: str, tensors: Sequence[TensorInfo]) -> None:
    """Steps of the share of each code; one line per width where a group has several."""
    total = sum(tensor.entries for tensor in tensors)
    widths = sorted({tensor.bits for tensor in tensors}, reverse=True)
    for bits, color in zip(widths, COLORS, strict=False):
        same = [tensor for tensor in tensors if tensor.bits == bits]
        counts = [sum(column) for column in zip(*(tensor.counts for tensor in same), strict=True)]
        low, counts = _trimmed(counts, code_range(bits)[0])
        shares = [100 * count / total for count in counts]
        edges = [code - 0.5 for code in range(low, low + len(shares) + 1)]
        axis.stairs(shares, edges, color=color, fill=True, alpha=0.25)
        label = f"{bits}-bit codes, entropy {_entropy(same):.2f} bits"
        axis.stairs(shares, edges, color=color, linewidth=1.0, label=label)
    if len(widths) > 1:
        # Headroom, so that the legend covers nothing.
        axis.margins(y=0.12 + 0.1 * len(widths))
        axis.legend(frameon=False, fontsize=7, loc="upper right", handlelength=1.0)
    text = f"{widths[0]}-bit codes, entropy" if len(widths) == 1 else "entropy of all"
    axis.set_title(plain(f"{group}\n{text} {_entropy(tensors):.2f} bits", keep="\n"), loc="left", fontsize=9)
    axis.set_xlabel("code")
    axis.set_ylim(bottom=0)
    axis.grid()


def _trimmed(counts: Sequence[int], low: int) -> tuple[int, list[int]]:
    """Counts from the first to the last that is not 0, and the code of the first; ``low`` is that of
    ``counts[0]``.
    """
    seen = [index for index, count in enumerate(counts) if count]
    return (low + seen[0], list(counts[seen[0] : seen[-1] + 1])) if seen else (low, [])


def _entropy(tensors: Sequence[TensorInfo]) -> float:
    """Order-0 entropy in bits per code."""
    return sum(tensor.entropy_bits for tensor in tensors) / sum(tensor.entries for tensor in tensors)


def _draw_bytes(axis: Any, info: ArtifactInfo) -> None:
    unit, divisor = ("kB", 1e3) if info.file_bytes < 1e7 else ("MB", 1e6)
    parts = {name: (group.code_bytes, group.float_bytes) for name, group in info.groups().items()}
    names = sorted(parts, key=lambda name: -sum(parts[name]))
    codes, floats = ([parts[name][side] / divisor for name in names] for side in (0, 1))
    axis.barh(names, codes, color=COLORS[0], label="codes")
    axis.barh(names, floats, left=codes, color=COLORS[1], label="steps, factors and kept tensors")
    memory = info.section(MEMORY).size
    rest = {"header": info.artifact.header_bytes} | ({"memory": memory} if memory else {})
    others = [size / divisor for size in rest.values()]
    axis.barh(list(rest), others, color=COLORS[7])
    ends = [*(one + other for one, other in zip(codes, floats, strict=True)), *others]
    for row, end in enumerate(ends):
        text = f" {end:,.1f} {unit}, {100 * end * divisor / info.file_bytes:.1f} %"
        axis.text(end, row, text, va="center", fontsize=8)
    axis.set_xlim(right=1.18 * max(ends))
    axis.invert_yaxis()
    axis.set_xlabel(f"size in the file ({unit})")
    axis.set_title("where the bytes are, sections divided among the groups", loc="left", fontsize=10)
    axis.grid(axis="x")
    axis.legend(frameon=False, fontsize=8, loc="lower right")
