"""What a memory wins: bits by the longest context that it knew, and by place in the stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pgolf.data.shards import Tokens
from pgolf.evaluate.ledger import Entry
from pgolf.report.content import Table, Value

if TYPE_CHECKING:
    from pgolf.report.text_analysis import TargetCosts

_PARTS = 10
_COLUMNS = ("targets", "bytes", "without", "with memory", "bits won", "share of bits won")


def order_table(without: TargetCosts, mixed: TargetCosts, stored: Tokens, order: int) -> Table:
    """Bits won by the longest context that was known, for costs of the same targets.

    Args:
        without: of the model alone.
        mixed: of model and memory.
        stored: text (n,) uint16 that the memory has read before the stream.
        order: tokens of its longest context.
    """
    count = min(len(without.nats), len(mixed.nats))
    text = np.concatenate([stored, mixed.tokens[: count + 1]])
    groups = known_orders(text, order)[len(stored) + 1 :] + 1
    names = ["none", *map(str, range(order)), f"{order} or more"]
    costs = without.nats[:count], mixed.nats[:count]
    note = (
        "Tokens of the longest context that stood in front of another token before, in stored text or stream."
    )
    columns = np.ones(count, np.int64), mixed.bytes[:count], *costs
    return _table("Won by order", "longest known context", names, groups, columns, note)


def place_table(without: Sequence[Entry], mixed: Sequence[Entry]) -> Table:
    """Bits won in each tenth of the stream, by two ledgers of the same targets."""
    ends = [np.array([entry.first + entry.targets for entry in entries]) for entries in (without, mixed)]
    edges = np.intersect1d(ends[0], ends[1])

    def between(ends: NDArray[np.int64], values: Sequence[float]) -> NDArray[np.float64]:
        """A ledger's numbers summed up between the edges that both ledgers have."""
        return np.diff(np.cumsum(values)[np.searchsorted(ends, edges)], prepend=0)

    targets = np.diff(edges, prepend=0)
    sizes = between(ends[0], [entry.bytes for entry in without])
    before = between(ends[0], [entry.nats for entry in without])
    after = between(ends[1], [entry.nats for entry in mixed])
    groups = ((edges - targets / 2) * _PARTS / edges[-1]).astype(np.int64)
    names = [f"{100 * part // _PARTS} to {100 * (part + 1) // _PARTS} %" for part in range(_PARTS)]
    note = "The stream's targets in ten parts, cut where both ledgers have an edge."
    return _table("Won by place", "part of the stream", names, groups, (targets, sizes, before, after), note)


def known_orders(text: Tokens, order: int) -> NDArray[np.int64]:
    """For each token of a text (n,) the longest context that was known then: (n,), -1 where there was none.

    A context is the 0 to ``order`` tokens before; it is known if it stood in front of an earlier token.
    """
    found = np.full(len(text), -1, np.int64)
    # Numbers of the contexts of one length: equal where the contexts are.
    contexts = np.zeros(len(text), np.int64)
    for length in range(order + 1):
        first = np.unique(contexts, return_index=True)[1]
        known = np.ones(len(contexts), bool)
        known[first] = False
        found[length:][known] = length
        # One token more: the context before the token in front, and that token.
        pairs = contexts[:-1] * (1 << 16) + text[length : len(text) - 1]
        contexts = np.unique(pairs, return_inverse=True)[1]
    return found


def _table(
    title: str,
    what: str,
    names: Sequence[str],
    groups: NDArray[np.int64],
    columns: Sequence[NDArray[Any]],
    note: str,
) -> Table:
    """Rows of the groups that there are; ``columns``: targets, bytes, nats without and with the memory."""
    targets, sizes, before, after = (np.bincount(groups, column, len(names)) for column in columns)
    won = (before - after) / np.log(2)
    rows: list[list[Value]] = []
    for index, name in enumerate(names):
        if targets[index]:
            size = sizes[index]
            each = [float(nats[index] / np.log(2) / size) if size else None for nats in (before, after)]
            share = float(won[index] / won.sum()) if won.sum() else None
            rows.append([name, int(targets[index]), int(size), *each, round(won[index]), share])
    return Table(title, (what, *_COLUMNS), rows, f"{note} Costs in bits per byte.", digits=3, bar="bits won")
