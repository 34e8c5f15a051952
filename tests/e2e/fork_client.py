"""A `python` that starts at once: the server of fork_server.py does what is asked, and this ends as that.

    python -S -E fork_client.py SOCKET [-u] (-m MODULE | -c CODE | FILE | -) [ARGUMENT ...]

Only a little of the standard library is imported: nothing else would be faster than the real thing. Other
modules than those that take long to import, and other options, are left to the real Python.
"""

import contextlib
import json
import os
import signal
import socket
import sys
from types import FrameType

MODULES = ("pgolf", "submitit.core._submit", "torch.distributed.run")
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


def ask(
    place: str, words: list[str], folder: str, environment: dict[str, str], files: list[int]
) -> socket.socket:
    """Have the server do ``python WORDS``; ``answer`` gives the number of the process, then its exit status.

    Args:
        place: the server's socket.
        words: what follows ``python``.
        folder: working folder.
        environment: all of it.
        files: standard input, output and error.
    """
    os.umask(mask := os.umask(0o077))
    deaf = [int(number) for number in FORWARDED if signal.getsignal(number) == signal.SIG_IGN]
    content = json.dumps([words, folder, environment, deaf, mask]).encode()
    answers = socket.socket(socket.AF_UNIX)
    answers.connect(place)
    socket.send_fds(answers, [len(content).to_bytes(8, "big")], files)
    answers.sendall(content)
    return answers


def answer(answers: socket.socket) -> int:
    """The server's next number; -SIGKILL if it is gone."""
    content = answers.recv(8, socket.MSG_WAITALL)
    return int.from_bytes(content, "big", signed=True) if content else -signal.SIGKILL


def main() -> None:
    place, *words = sys.argv[1:]
    first, second, *_ = [*words[words[0] == "-u" :], ""]
    if first.startswith("-") and first not in ("-", "-c") and not (first == "-m" and second in MODULES):
        os.execv(sys.executable, [sys.executable, *words])
    folder = os.getcwd()  # noqa: PTH109
    answers = ask(place, words, folder, dict(os.environ), [0, 1, 2])
    process = answer(answers)

    def forward(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)

    for number in FORWARDED:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, forward)
    status = answer(answers)
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    main()
