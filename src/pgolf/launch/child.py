"""A run in a process of its own: started, asked to stop after its step, and asked what became of it."""

from __future__ import annotations

import datetime
import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from pgolf.runtime.paths import write_error
from pgolf.runtime.processes import handling

# Stopped after a step (130), or by the signal itself where there is no step to finish.
INTERRUPTED = (130, 128 + signal.SIGTERM, -signal.SIGTERM, -signal.SIGINT)


class Child(subprocess.Popen[bytes]):
    """A started process whose output is appended to a log.

    Args:
        words: the command.
        log: file for its output; the folder is made.
        folder: working folder.
        environment: variables in addition to this process's own.
        detached: whether a Ctrl-C in this terminal is kept from it.

    Raises:
        PgolfError: the log cannot be written.
    """

    def __init__(
        self,
        words: Sequence[str],
        log: Path,
        folder: Path,
        environment: Mapping[str, str],
        detached: bool = False,
    ) -> None:
        self.log, self._asked = log, False
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            output = log.open("ab")
        except OSError as error:
            raise write_error(log, error) from error
        # SLURM sends SIGUSR2 to all processes of a job; those started here ignore it.
        with output, handling(signal.SIG_IGN, signal.SIGUSR2):
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            self._log_starts = len(log.read_text(errors="replace"))
            output.write(os.fsencode(f"== {now} {shlex.join(words)}\n"))
            output.flush()
            super().__init__(
                words,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=detached,
            )

    def stop(self) -> None:
        """Ask it, once, to finish its step, write a checkpoint and end."""
        if not self._asked:
            self._asked = True
            self.terminate()

    def last_words(self, status: int) -> str:
        """Why it failed: the signal that ended it, its error, or else the last line of its log."""
        if status < 0:
            memory = " (was the memory too small?)" if status == -signal.SIGKILL else ""
            return f"ended by {signal.Signals(-status).name}{memory}"
        text = self.log.read_text(errors="replace")[self._log_starts :]
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("pgolf: error: ")]
        return errors[-1].removeprefix("pgolf: error: ") if errors else lines[-1]
