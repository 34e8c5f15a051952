"""What may be printed: text without what a terminal would obey, on streams that cannot fail a job."""

from __future__ import annotations

import errno
import io
import os
import re
import select
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO, cast

# Unicode's categories of what a terminal may act on, what turns the reading direction or has no meaning.
_DISTURBING = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
_UNUSUAL = re.compile(r"[^ -~]")
# Bytes of a file's name that are no UTF-8 come from the system as these code points.
_FIRST_BYTE, _LAST_BYTE = 0xDC80, 0xDCFF


def plain(text: str, keep: str = "") -> str:
    """Text that is shown as it is, whatever a file's author wrote into it.

    Control and format characters become U+FFFD, but for those in ``keep``. A byte of a file's name that is no
    UTF-8 becomes ``\\xe9`` (in hexadecimal), as shells write it.
    """
    return _UNUSUAL.sub(lambda found: found[0] if found[0] in keep else _shown(found[0]), text)


def _shown(character: str) -> str:
    if _FIRST_BYTE <= ord(character) <= _LAST_BYTE:
        return f"\\x{ord(character) - 0xDC00:02x}"
    return "\N{REPLACEMENT CHARACTER}" if unicodedata.category(character) in _DISTURBING else character


def can_spell(text: str, encoding: str | None) -> bool:
    """Whether a stream of this encoding has all characters of a text."""
    try:
        text.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def spelled(text: str, encoding: str | None) -> str:
    """The text as a stream of this encoding shows it: with escapes for the characters that it lacks."""
    return text.encode(encoding or "utf-8", "backslashreplace").decode(encoding or "utf-8")


@dataclass
class Output:
    """What became of standard output."""

    lost: OSError | None = None
    """Why something that was written to it did not arrive."""

    @property
    def problem(self) -> str | None:
        """What to tell the user; None if all arrived, or if whoever read it had enough (``| head``)."""
        if self.lost is None or isinstance(self.lost, BrokenPipeError):
            return None
        full = "; free some space" if self.lost.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        lost = f"cannot be written ({self.lost.strerror or self.lost}); what the command did stays"
        return f"standard output: {lost}, its output is lost{full}"


output = Output()
"""Of this process."""


class _Patient(io.FileIO):
    """A file that waits for a slow reader, and notes why something does not arrive instead of failing."""

    def __init__(self, descriptor: int, noted: Output) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._noted = noted

    def write(self, data: bytes) -> int | None:  # type: ignore[override]
        try:
            # None: whoever made it does not want writers to wait for its readers, and it is full.
            while (count := super().write(data)) is None:
                select.select([], [self], [])
            return count
        except OSError as error:
            self._noted.lost = self._noted.lost or error
            return len(data)


@contextmanager
def patient_streams() -> Iterator[None]:
    """Inside, standard output and error take everything, though closed, full or short of a character.

    Closed streams are opened on the null device, so that no file of ours gets their number and what others
    print. What could not be written to standard output is known afterwards from ``output``. Streams that the
    caller has replaced are left alone. On Windows they only escape what they cannot spell.
    """
    if os.name == "nt":  # The console there takes text and no bytes.
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        yield
        return
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    before = sys.stdout, sys.stderr
    output.lost = None
    if sys.stdout is sys.__stdout__:
        sys.stdout = _patient(sys.stdout, 1, output)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _patient(sys.stderr, 2, Output())
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def _patient(stream: TextIO | None, descriptor: int, noted: Output) -> TextIO:
    """A stream like ``stream``, which is None where it was closed."""
    lines = descriptor == 2 or (stream is not None and stream.isatty())
    through = isinstance(stream, io.TextIOWrapper) and stream.write_through
    if stream is None:
        # Something else may have got the number in the meantime.
        descriptor = os.open(os.devnull, os.O_WRONLY)
    buffer = io.BufferedWriter(cast(io.RawIOBase, _Patient(descriptor, noted)))
    encoding = stream.encoding if stream is not None else "utf-8"
    return io.TextIOWrapper(
        buffer, encoding, errors="backslashreplace", line_buffering=lines, write_through=through
    )
