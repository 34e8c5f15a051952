"""The tables and the picture of an inspected artifact: which codes occur how often, and where the bytes are."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pgolf.compress.inspect import ArtifactInfo, TensorInfo
from pgolf.compress.quantize import code_range
from pgolf.runtime.terminal import can_spell, plain
from pgolf.runtime.writing import write_bytes

TENSOR_COLUMNS = ("tensor", "shape", "bits", "codes", "histogram", "entropy\nper code", "floats\nbytes")
GROUP_COLUMNS = ("group", "tensors", "weights", "codes\nbytes", "floats\nbytes", "bits per\nweight")
# What may be left out where there is little room, the least important first.
TENSOR_DROP = ("histogram", "floats\nbytes", "codes", "shape", "entropy\nper code")
GROUP_DROP = ("tensors", "floats\nbytes", "weights", "codes\nbytes")
BAR_WIDTH = 16
_BLOCKS, _ASCII_BLOCKS = " ▁▂▃▄▅▆▇█", " .:-=+*#@"
_BLUE, _ORANGE, _GREY = "#1f4e8c", "#c2410c", "#6b7280"
# One colour per width of codes in a panel.
_WIDTHS = ("#1f4e8c", "#c2410c", "#15803d", "#7e22ce")


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
    """A row per tensor, under ``TENSOR_COLUMNS``."""
    return [
        (
            tensor.name,
            "x".join(map(str, tensor.shape)) or "scalar",
            f"{tensor.bits}" if tensor.counts else f"fp{tensor.bits}",
            f"{tensor.code_min}..{tensor.code_max}" if tensor.code_min is not None else "-",
            bars(_trimmed(tensor.counts, 0)[1], blocks=blocks),
            f"{tensor.entropy_per_weight:.3f}" if tensor.entropy_per_weight is not None else "-",
            f"{tensor.float_bytes:,}",
        )
        for tensor in info.tensors
    ]


def group_rows(info: ArtifactInfo) -> list[tuple[str, ...]]:
    """A row per quantizer group, under ``GROUP_COLUMNS``, and one for the header."""
    rows = [
        (
            name,
            f"{group.tensors:,}",
            f"{group.weights:,}",
            f"{group.code_bytes:,.0f}",
            f"{group.float_bytes:,.0f}",
            f"{8 * (group.code_bytes + group.float_bytes) / group.weights:.3f}" if group.weights else "-",
        )
        for name, group in info.groups().items()
    ]
    codes, floats = info.section("codes").size, info.section("floats").size
    tensors = sum(not tensor.correction for tensor in info.tensors)
    both = 8 * (codes + floats) / max(info.weights, 1)
    return [*rows, ("all", f"{tensors:,}", f"{info.weights:,}", f"{codes:,}", f"{floats:,}", f"{both:.3f}")]


def summary_rows(info: ArtifactInfo) -> list[tuple[str, str]]:
    """Sizes, totals and digests as labelled lines."""
    codes, floats = info.section("codes"), info.section("floats")
    per_code = f"; {8 * codes.size / info.codes:.3f} bits per code" if info.codes else ""
    difference = codes.size - info.entropy_bytes
    percent = f" ({100 * difference / info.entropy_bytes:+.2f} %)" if info.entropy_bytes else ""
    return [
        ("format", f"version {info.format}, coder {info.coder}"),
        ("file", f"{info.file_bytes:>12,} bytes"),
        ("header", f"{info.header_bytes:>12,} bytes"),
        ("section codes", f"{codes.size:>12,} bytes of {codes.raw:,} raw{per_code}"),
        ("section floats", f"{floats.size:>12,} bytes of {floats.raw:,} raw"),
        ("order-0 entropy", f"{info.entropy_bytes:>12,.0f} bytes, summed over the tensors' codes"),
        ("codes against it", f"{difference:>+12,.0f} bytes{percent}"),
        ("weights", f"{info.weights:>12,} at {info.bits_per_weight:.3f} bits each, header included"),
        ("recipe", f"{info.recipe or 'without a name'}, SHA-256 {info.recipe_digest[:16]}"),
        ("tokenizer", f"SHA-256 {info.tokenizer_digest[:16]}" if info.tokenizer_digest else "not recorded"),
    ]


def draw_codes(info: ArtifactInfo, out: Path) -> None:
    """Draw a PNG: for each group how often its codes occur, and below where the file's bytes are."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = _panels(info)
    columns = 2 if len(panels) in (2, 4) else 3
    lines = -(-len(panels) // columns)
    heights = [2.4] * lines + [1.1 + 0.3 * (len(info.groups()) + 1)]
    figure = Figure(figsize=(9, 0.6 + sum(heights)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(lines + 1, columns, height_ratios=heights)
    for index, (group, tensors) in enumerate(panels.items()):
        axis = figure.add_subplot(grid[index // columns, index % columns])
        _draw_group(axis, group, tensors, labelled=index % columns == 0)
    _draw_bytes(figure.add_subplot(grid[lines, :]), info)
    title = (
        f"{Path(info.file).name}: {info.weights:,} weights in {info.file_bytes:,} bytes, "
        f"{info.bits_per_weight:.2f} bits per weight"
    )
    # A name may hold anything, also what matplotlib would take for a formula.
    figure.suptitle(plain(title), x=0.01, ha="left", parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_bytes(out, buffer.getvalue())


def _panels(info: ArtifactInfo) -> dict[str, list[TensorInfo]]:
    """The tensors with codes by group; those of corrections together in a panel of their own."""
    panels: dict[str, list[TensorInfo]] = {}
    for tensor in info.tensors:
        if tensor.counts and tensor.entries:
            panels.setdefault("corrections" if tensor.correction else tensor.group, []).append(tensor)
    return panels


def _draw_group(axis: Any, group: str, tensors: Sequence[TensorInfo], labelled: bool) -> None:
    """Steps of the share of each code; one line per width where a group has several."""
    total = sum(tensor.entries for tensor in tensors)
    widths = sorted({tensor.bits for tensor in tensors}, reverse=True)
    for bits, color in zip(widths, _WIDTHS * 2, strict=False):
        same = [tensor for tensor in tensors if tensor.bits == bits]
        counts = [sum(column) for column in zip(*(tensor.counts for tensor in same), strict=True)]
        low, counts = _trimmed(counts, code_range(bits)[0])
        shares = [100 * count / total for count in counts]
        edges = [code - 0.5 for code in range(low, low + len(shares) + 1)]
        axis.stairs(shares, edges, color=color, fill=True, alpha=0.25)
        axis.stairs(
            shares,
            edges,
            color=color,
            linewidth=1.0,
            label=f"{bits}-bit codes, entropy {_used(same):.2f} bits",
        )
    if len(widths) > 1:
        # Headroom, so that the legend covers nothing.
        axis.margins(y=0.12 + 0.1 * len(widths))
        axis.legend(frameon=False, fontsize=7, loc="upper right", handlelength=1.0)
    text = f"{widths[0]}-bit codes, entropy" if len(widths) == 1 else "entropy of all"
    axis.set_title(f"{group}\n{text} {_used(tensors):.2f} bits", loc="left", fontsize=9)
    axis.set_xlabel("code")
    if labelled:
        axis.set_ylabel("share of the codes (%)")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _trimmed(counts: Sequence[int], low: int) -> tuple[int, list[int]]:
    """Counts from the first to the last that is not 0, and the code of the first; ``low`` is that of
    ``counts[0]``.
    """
    seen = [index for index, count in enumerate(counts) if count]
    return (low + seen[0], list(counts[seen[0] : seen[-1] + 1])) if seen else (low, [])


def _used(tensors: Sequence[TensorInfo]) -> float:
    """Order-0 entropy in bits per code."""
    return sum(tensor.entropy_bits for tensor in tensors) / sum(tensor.entries for tensor in tensors)


def _draw_bytes(axis: Any, info: ArtifactInfo) -> None:
    unit, divisor = ("kB", 1e3) if info.file_bytes < 1e7 else ("MB", 1e6)
    parts = {name: (group.code_bytes, group.float_bytes) for name, group in info.groups().items()}
    names = sorted(parts, key=lambda name: -sum(parts[name]))
    codes, floats = ([parts[name][index] / divisor for name in names] for index in (0, 1))
    header = info.header_bytes / divisor
    axis.barh(names, codes, color=_BLUE, label="codes")
    axis.barh(names, floats, left=codes, color=_ORANGE, label="steps, factors and kept tensors")
    axis.barh(["header"], [header], color=_GREY)
    ends = [*(one + other for one, other in zip(codes, floats, strict=True)), header]
    for place, end in enumerate(ends):
        text = f" {end:,.1f} {unit}, {100 * end * divisor / info.file_bytes:.1f} %"
        axis.text(end, place, text, va="center", fontsize=8)
    axis.set_xlim(right=1.18 * max(ends))
    axis.invert_yaxis()
    axis.set_xlabel(f"size in the file ({unit})")
    axis.set_title("where the bytes are, sections divided among the groups", loc="left", fontsize=10)
    axis.grid(axis="x", alpha=0.25)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8, loc="lower right")
