"""Counts of what followed each context of tokens, in bounded memory, with a journal to take them back.

A context is known by a 64-bit hash. Its record lies in a table of sets of eight slots: where a set is full,
the context that was seen least makes room. Each context has successors of its own: tokens with their counts,
the latest in front. A single successor lies in the record itself, more of them in the arena, in blocks whose
sizes are powers of two.

Everything here is a function of numba on the arrays of ``Counts``. While a journal is kept, every word that
changes is noted first, and ``undo`` puts the words back in reverse order: then not a bit differs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pgolf.kernels.compiled import compiled

WAYS = 8
"""Slots of a set."""
MOST = 65535
"""The largest count; it is 16 bits wide."""
_CLASSES = 18
# Places in ``heads`` after the free lists: first unused word of the arena, entries of the journal (-1: off).
_UNUSED, _NOTED = _CLASSES, _CLASSES + 1
# Which array a noted place is in: the two highest bits that are used.
_IN_ARENA, _IN_HEADS, _IN_CELLS = 1 << 60, 2 << 60, 3 << 60
_AREA, _PLACE = 3 << 60, (1 << 60) - 1
_WORDS_PER_CONTEXT = 12  # At most so many change when a context meets a token, beside its successors.


class Counts(NamedTuple):
    """The arrays."""

    table: NDArray[np.uint64]
    """(2 * slots,), two words per slot: the hash's upper half, number of successors, size class; and where
    they are (or the only one itself) with the sum of all counts. The first is 0 where a slot is free."""
    arena: NDArray[np.uint32]
    """Successors: the token in the upper half, its count in the lower."""
    heads: NDArray[np.int64]
    """Heads of the lists of free blocks, 0 at their ends, and the places named above."""
    cells: NDArray[np.int32]
    """Whatever else is to be taken back: the latest place of each longer context."""
    journal: NDArray[np.int64]
    """(2, entries): place and former word."""


def new_counts(contexts: int, successors: int, cells: int, noted: int) -> Counts:
    """Empty counts: room for so many contexts and successors, ``cells`` numbers, ``noted`` changes."""
    heads = np.zeros(_CLASSES + 2, np.int64)
    heads[_UNUSED], heads[_NOTED] = 1, -1
    table = np.zeros(2 * WAYS * (contexts // WAYS + 1), np.uint64)
    journal = np.zeros((2, noted), np.int64)
    return Counts(table, np.zeros(successors + 1, np.uint32), heads, np.zeros(cells, np.int32), journal)


@compiled
def note(counts, place, old):
    """Remember a word before it changes, if a journal is kept."""
    entry = counts.heads[_NOTED]
    if entry >= 0:
        counts.journal[0, entry] = place
        counts.journal[1, entry] = old
        counts.heads[_NOTED] = entry + 1


@compiled
def begin_journal(counts):
    """Note every change from here on."""
    counts.heads[_NOTED] = 0


@compiled
def has_room(counts, slots, cells):
    """Whether the journal has room for a token that follows contexts (K,), and for so many cells."""
    if counts.heads[_NOTED] < 0:
        return True
    most = len(slots) * _WORDS_PER_CONTEXT + cells
    for slot in slots:
        if slot >= 0:
            most += successors(counts, slot)[1]
    return counts.heads[_NOTED] + most <= counts.journal.shape[1]


@compiled
def end_journal(counts):
    """Keep what has changed."""
    counts.heads[_NOTED] = -1


@compiled
def undo(counts):
    """Take back everything since ``begin_journal``."""
    for entry in range(counts.heads[_NOTED] - 1, -1, -1):
        place, old = counts.journal[0, entry], counts.journal[1, entry]
        area, at = place & _AREA, place & _PLACE
        if area == 0:
            counts.table[at] = np.uint64(old)
        elif area == _IN_ARENA:
            counts.arena[at] = np.uint32(old)
        elif area == _IN_HEADS:
            counts.heads[at] = old
        else:
            counts.cells[at] = np.int32(old)
    counts.heads[_NOTED] = -1


@compiled
def set_cell(counts, place, value):
    """Change one of the cells."""
    note(counts, _IN_CELLS | place, np.int64(counts.cells[place]))
    counts.cells[place] = value


@compiled
def _set_of(counts, key):
    sets = np.uint64(len(counts.table) // (2 * WAYS))
    return np.int64(((key & np.uint64(0xFFFFFFFF)) * sets) >> np.uint64(32)) * WAYS


@compiled
def find(counts, key):
    """The slot of a context, -1 if it was never seen."""
    first = _set_of(counts, key)
    check = (key >> np.uint64(32)) | np.uint64(1)
    for slot in range(first, first + WAYS):
        if counts.table[2 * slot] >> np.uint64(32) == check:
            return slot
    return np.int64(-1)


@compiled
def successors(counts, slot):
    """(first, number, sum of the counts) of a context's successors; ``first`` -1: it is the record's own."""
    words = counts.table[2 * slot], counts.table[2 * slot + 1]
    number = np.int64((words[0] >> np.uint64(8)) & np.uint64(0xFFFFFF))
    total = np.int64(words[1] & np.uint64(0xFFFFFFFF))
    single = words[0] & np.uint64(0xFF) == np.uint64(0)
    return np.int64(-1) if single else np.int64(words[1] >> np.uint64(32)), number, total


@compiled
def successor(counts, slot, first, index):
    """(token, count) of a context's successor."""
    word = (
        counts.table[2 * slot + 1] >> np.uint64(32) if first < 0 else np.uint64(counts.arena[first + index])
    )
    return np.int64(word >> np.uint64(16)), np.int64(word & np.uint64(0xFFFF))


@compiled
def add(counts, key, slot, token):
    """Count a token that followed the context ``key``, whose slot is given (-1: it was not found).

    Returns whether the token had followed it before.
    """
    entry = np.uint64(token) << np.uint64(16) | np.uint64(1)
    # Another context of the same moment may be the same, or have taken its slot.
    if slot < 0 or counts.table[2 * slot] >> np.uint64(32) != (key >> np.uint64(32)) | np.uint64(1):
        slot = find(counts, key)
    if slot < 0:
        slot = _vacate(counts, key)
        check = (key >> np.uint64(32)) | np.uint64(1)
        _put(counts, 2 * slot, check << np.uint64(32) | np.uint64(1) << np.uint64(8))
        _put(counts, 2 * slot + 1, entry << np.uint64(32) | np.uint64(1))
        return False
    first, number, total = successors(counts, slot)
    if first < 0:
        word = counts.table[2 * slot + 1] >> np.uint64(32)
        if np.int64(word >> np.uint64(16)) == token:
            if word & np.uint64(0xFFFF) < np.uint64(MOST):
                _put(counts, 2 * slot + 1, (word + np.uint64(1)) << np.uint64(32) | np.uint64(total + 1))
            return True
        first = _allocate(counts, 1)
        if first:
            _store(counts, first, entry)
            _store(counts, first + 1, word)
            _describe(counts, slot, 2, 1)
            _put(counts, 2 * slot + 1, np.uint64(first) << np.uint64(32) | np.uint64(total + 1))
        return False
    found = first
    while found < first + number and np.int64(counts.arena[found] >> np.uint32(16)) != token:
        found += 1
    knew = found < first + number
    if knew:
        entry = np.uint64(counts.arena[found])
        if entry & np.uint64(0xFFFF) == np.uint64(MOST):
            total -= 1
        else:
            entry += np.uint64(1)
    else:
        size_class = np.int64(counts.table[2 * slot] & np.uint64(0xFF))
        if number == 1 << size_class:
            wider = _allocate(counts, size_class + 1)
            if not wider:
                return False
            for place in range(number):
                _store(counts, wider + place, np.uint64(counts.arena[first + place]))
            _release(counts, first, size_class)
            first, found, size_class = wider, wider + number, size_class + 1
        _describe(counts, slot, number + 1, size_class)
    if found != first:
        _store(counts, found, np.uint64(counts.arena[first]))
    _store(counts, first, entry)
    _put(counts, 2 * slot + 1, np.uint64(first) << np.uint64(32) | np.uint64(total + 1))
    return knew


@compiled
def put(counts, key, token, times):
    """Count a token that has not followed the context ``key`` yet so many times, while no journal is kept."""
    add(counts, key, find(counts, key), token)
    slot = find(counts, key)
    first, _, _ = successors(counts, slot)
    latest, known = successor(counts, slot, first, 0)
    if latest == token:  # Else there was no room.
        more = np.uint64(min(times - 1, MOST - known))
        counts.table[2 * slot + 1] += more
        if first < 0:
            counts.table[2 * slot + 1] += more << np.uint64(32)
        else:
            counts.arena[first] += np.uint32(more)


@compiled
def raise_total(counts, key, total):
    """Let a context, if it is known, have been seen so often: as what followed it besides is not told."""
    slot = find(counts, key)
    if slot >= 0:
        known = counts.table[2 * slot + 1] & np.uint64(0xFFFFFFFF)
        counts.table[2 * slot + 1] += max(np.uint64(total), known) - known


@compiled
def _put(counts, place, word):
    note(counts, place, np.int64(counts.table[place]))
    counts.table[place] = word


@compiled
def _store(counts, place, word):
    note(counts, _IN_ARENA | place, np.int64(counts.arena[place]))
    counts.arena[place] = np.uint32(word)


@compiled
def _head(counts, place, value):
    note(counts, _IN_HEADS | place, counts.heads[place])
    counts.heads[place] = value


@compiled
def _describe(counts, slot, number, size_class):
    check = counts.table[2 * slot] >> np.uint64(32)
    _put(counts, 2 * slot, check << np.uint64(32) | np.uint64(number) << np.uint64(8) | np.uint64(size_class))


@compiled
def _vacate(counts, key):
    """A free slot for a new context; if its set has none, that of the context that was seen least."""
    first = _set_of(counts, key)
    rarest, least = first, np.uint64(1 << 40)
    for slot in range(first, first + WAYS):
        if counts.table[2 * slot] == np.uint64(0):
            return slot
        seen = counts.table[2 * slot + 1] & np.uint64(0xFFFFFFFF)
        if seen < least:
            rarest, least = slot, seen
    place, _, _ = successors(counts, rarest)
    if place >= 0:
        _release(counts, place, np.int64(counts.table[2 * rarest] & np.uint64(0xFF)))
    return rarest


@compiled
def _allocate(counts, size_class):
    """A block of the arena for 2 ** size_class successors; 0 if there is no room."""
    place = counts.heads[size_class]
    if place:
        _head(counts, size_class, np.int64(counts.arena[place]))
        return place
    place = counts.heads[_UNUSED]
    if place + (1 << size_class) > len(counts.arena):
        return np.int64(0)
    _head(counts, _UNUSED, place + (1 << size_class))
    return place


@compiled
def _release(counts, place, size_class):
    _store(counts, place, np.uint64(counts.heads[size_class]))
    _head(counts, size_class, place)
