"""A plug-in in a process of its own, which never holds a token that it has not been shown.

In the grader's process a plug-in could look for the text: in the frames of whoever calls it, among the
objects of the garbage collector. So it is imported, made and asked in another one: a new interpreter
(``subprocess``, no fork) in an empty folder, with a few environment variables, no open files but the pipes,
and limits where the system has them. Over the pipe go the calls of the protocol, with the tokens that the
protocol shows, and what the factory is told; back come JSON and plain arrays, never a pickle. What the
process opens and starts is reported to the watches of this one.

It is the same user on the same file system and network: see docs/audit.md for what that leaves open.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgolf.audit.held import held_by
from pgolf.audit.report import SUM_LIMIT, Largest
from pgolf.audit.state import scorer_parts
from pgolf.audit.subject import Claim, Context, Evaluator, Subject, blamed, load_factory, make_subject
from pgolf.audit.watch import Learning, Relay, relayed, unwatched
from pgolf.data.shards import Tokens
from pgolf.errors import PgolfError
from pgolf.evaluate.protocol import Recorded, Scorer
from pgolf.runtime.processes import birth
from pgolf.runtime.terminal import plain

SECONDS = 600.0
"""An answer that takes longer does not come any more."""
FILE_BYTES = 1 << 28
"""A file that the process writes may have so many; compilers keep what they make."""
# Whatever else is set here, such as keys and the names of folders, is nothing to a plug-in.
_VARIABLES = (
    *("PATH", "HOME", "USERPROFILE", "LANG", "LC_ALL", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT", "TZ"),
    *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_HOME"),
    *("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS", "GOMP_SPINCOUNT"),
    *("XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"),
)
_MOST_BYTES = 1 << 34  # of an answer
_LONGEST_LINE = 10_000  # of what it says on standard error

Arrays = dict[str, NDArray[Any]]
T = TypeVar("T")


def isolated(name: str, context: Context, seconds: float = SECONDS) -> Subject:
    """What the factory ``name`` makes (see ``load_factory``), in a process of its own.

    Args:
        name: MODULE:FUNCTION or FILE.py:FUNCTION, from the current folder.
        context: what the factory is told.
        seconds: how long each answer may take.

    Raises:
        PgolfError: there is no such factory, or it fails; then or later, the process takes too long or ends.
    """
    child = _Child(name, context, seconds)
    about, _ = child.call("make")
    with _sound(name, "make"):
        if about["kind"] == "scorer":
            return IsolatedScorer(child, about, context.vocab_size)
        evaluator = Evaluator(_RemoteFunction(child, about), name)
        evaluator.takes_announced, evaluator.takes_wanted = about["announced"], about["wanted"]
        return evaluator


@contextlib.contextmanager
def _sound(name: str, what: str) -> Iterator[None]:
    """An answer that cannot be understood is a ``PgolfError``."""
    wrong = ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError, RecursionError
    try:
        yield
    except wrong as error:
        raise PgolfError(f"{name}: its process answered {what}() with no answer ({error})") from error


class Remote:
    """What scorers and evaluators in another process have in common."""

    def __init__(self, child: _Child, about: Mapping[str, Any]) -> None:
        self._child, self.learning = child, child.learning
        self.documents_independent, self.periods = about["documents_independent"], tuple(about["periods"])

    def held(self) -> Arrays:
        """See ``held_by``."""
        return self._child.call("held")[1]


class IsolatedScorer(Remote, Scorer):
    """Passes every call on; snapshots stay where they are made."""

    def __init__(self, child: _Child, about: Mapping[str, Any], vocab_size: int) -> None:
        super().__init__(child, about)
        self.vocab_size = vocab_size
        if about["bytes"]:
            self.byte_distributions = lambda given, token: self._array("byte_distributions", given, token)

    def begin(self, first: int, targets: int) -> None:
        self._child.call("begin", first, targets)

    def wanted(self) -> int:
        found = self._child.call("wanted")[0]
        with _sound(self._child.name, "wanted"):
            return int(found)

    def distributions(self, given: Tensor) -> Tensor:
        rows, wanted = self._array("distributions", given), (len(given) + 1, self.vocab_size)
        if rows.shape != wanted:
            shape = tuple(rows.shape)
            raise PgolfError(f"{self._child.name}: distributions() returned shape {shape}, not {wanted}")
        return rows

    def losses(self, block: Tensor) -> Tensor:
        return self._array("losses", block)

    def receive(self, recorded: Recorded) -> None:
        self._child.call("receive", recorded.first, recorded.tokens)

    def state_digest(self) -> str:
        return str(self._child.call("state_digest")[0])

    def snapshot(self) -> Any:
        return self._child.call("snapshot")[0]

    def restore(self, snapshot: Any) -> None:
        self._child.call("restore", snapshot)

    def parts(self) -> dict[str, str]:
        """See ``scorer_parts``."""
        return dict(self._child.call("parts")[0])

    def _array(self, what: str, tokens: Tensor, *more: int) -> Tensor:
        answer = self._child.call(what, tokens.cpu().numpy(), *more)[1]
        with _sound(self._child.name, what):
            (found,) = answer.values()
            return torch.from_numpy(found)


class GradedScorer(Scorer):
    """An isolated scorer of which only distributions are taken, each held to be one.

    What targets cost is looked up in this process, so a scorer cannot name its own price.
    """

    def __init__(self, scorer: IsolatedScorer, name: str) -> None:
        self.scorer, self.name, self.vocab_size = scorer, name, scorer.vocab_size
        self.sums = Largest()

    def begin(self, first: int, targets: int) -> None:
        self.position = 0
        self.scorer.begin(first, targets)

    def wanted(self) -> int:
        return self.scorer.wanted()

    def distributions(self, given: Tensor) -> Tensor:
        rows = self.scorer.distributions(given)
        self.sums.take(torch.logsumexp(rows.double(), dim=1).numpy(), self.position)
        if self.sums.value > SUM_LIMIT:
            self.check()
        return rows

    def check(self) -> None:
        """A ``PgolfError`` if the rows so far do not add up to 1."""
        found = self.sums.judged_sums("probabilities add up to 1", f"logsumexp of {self.sums.count} rows")
        if not found.passed:
            raise PgolfError(f"{self.name}: its probabilities do not add up to 1: {found.evidence}")

    def receive(self, recorded: Recorded) -> None:
        self.position += len(recorded.tokens)
        self.scorer.receive(recorded)

    def state_digest(self) -> str:
        return self.scorer.state_digest()


class _RemoteFunction(Remote):
    def __call__(
        self, tokens: Tokens, byte_table: Any, announced: int = 0, wanted: Sequence[int] = ()
    ) -> Claim:
        value, arrays = self._child.call("evaluate", tokens, announced, list(wanted))
        rows: dict[str, dict[int, Any] | None] = {"d": None, "b": None}
        for kind in value["kinds"]:
            rows[kind] = {int(key[1:]): array for key, array in arrays.items() if key[0] == kind}
        places = arrays["positions"]
        return Claim(arrays["nats"], value["bytes"], value["val_bpb"], places, rows["d"], rows["b"])


class _Child:
    """The process of a plug-in, as the grader sees it."""

    def __init__(self, name: str, context: Context, seconds: float) -> None:
        self.name, self.seconds, self.learning = name, seconds, Learning()
        folder, here = tempfile.mkdtemp(prefix="pgolf-"), Path.cwd()
        paths = [path for path in sys.path if path and Path(path) != here]
        code = f"import sys; sys.path[:] = {paths!r}; from pgolf.audit.isolated import serve; "
        code += f"serve({os.getpid()}, {folder!r})"
        with unwatched():
            self.process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=folder,
                env={name: os.environ[name] for name in _VARIABLES if name in os.environ},
                start_new_session=True,  # What it starts is ended with it.
            )
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self._requests, self._answers = self.process.stdin, self.process.stdout
        self._said: deque[bytes] = deque(maxlen=20)
        self._reader = threading.Thread(
            target=self._said.extend,
            args=(iter(partial(self.process.stderr.readline, _LONGEST_LINE), b""),),
            daemon=True,
        )
        self._reader.start()
        weakref.finalize(self, _end, self.process, folder)
        context = replace(context, artifact=context.artifact.resolve())
        self._ask("make", lambda: _write(self._requests, pickle.dumps((name, here, context))))

    def call(self, what: str, *arguments: Any) -> tuple[Any, Arrays]:
        """What the process answers to one request: a JSON value and arrays by name."""

        def ask() -> tuple[dict[str, Any], Arrays]:
            _write(self._requests, pickle.dumps((what, arguments)))
            return _read_answer(self._answers)

        head, arrays = self._ask(what, ask)
        with _sound(self.name, what):
            for name, *details in head["events"]:
                relayed(name, details)
            self.learning.gradients, self.learning.steps = head["learning"]
            error, value = head["error"], head["value"]
        if error:
            # It may say anything.
            raise PgolfError(" ".join(plain(str(error)).split())[:1000])
        return value, arrays

    def _ask(self, what: str, ask: Callable[[], Any]) -> Any:
        doing, answer = "the factory" if what == "make" else f"{what}()", _in_the_background(ask)
        if not wait([answer], self.seconds).done:
            _kill(self.process)
            # Whatever else it has started may hold the pipes for ever, and streams in use cannot be closed.
            if not wait([answer], 1).done:
                self.process.stdin = self.process.stdout = None
            raise PgolfError(
                f"{self.name}: {doing} took longer than {self.seconds:,.0f} s and was stopped; make it faster"
            )
        try:
            with _sound(self.name, what):
                return answer.result()
        except (OSError, EOFError) as error:
            raise PgolfError(self._how_it_ended(doing)) from error

    def _how_it_ended(self, doing: str) -> str:
        try:
            status = self.process.wait(5)
        except subprocess.TimeoutExpired:
            _kill(self.process)
            status = self.process.wait()
        self._reader.join(5)
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        said = [line.decode(errors="replace").strip() for line in self._said if line.strip()]
        last = f"; the last that it said: {said[-1][:300]}" if said else "; it said nothing"
        return f"{self.name}: its process {how} in {doing}{last}"


def _in_the_background(ask: Callable[[], T]) -> Future[T]:
    """What it answers, or raises, at some time; nobody waits for it at the end of the program."""
    answer: Future[T] = Future()

    def work() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return answer


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End it and what it has started, as far as that stayed in its session."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def _end(process: subprocess.Popen[bytes], folder: str) -> None:
    with unwatched():
        _kill(process)
        process.wait()
        for stream in filter(None, (process.stdin, process.stdout)):
            with contextlib.suppress(OSError):  # What it was never given.
                stream.close()
        shutil.rmtree(folder, ignore_errors=True)


# What goes over the pipe: requests as pickles, since the grader is trusted there, answers as JSON and arrays.


def _write(stream: IO[bytes], content: bytes) -> None:
    stream.write(len(content).to_bytes(8, "little") + content)
    stream.flush()


def _read(stream: IO[bytes], count: int | None = None) -> bytes:
    if count is None:
        count = int.from_bytes(_read(stream, 8), "little")
    if not 0 <= count <= _MOST_BYTES:
        raise ValueError(f"{count} bytes")
    content = stream.read(count)
    if len(content) < count:
        raise EOFError
    return content


def _write_answer(stream: IO[bytes], head: dict[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    plain = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    head["arrays"] = [(name, array.dtype.str, array.shape) for name, array in plain.items()]
    _write(stream, json.dumps(head).encode())
    for array in plain.values():
        stream.write(array.tobytes())
    stream.flush()


def _read_answer(stream: IO[bytes]) -> tuple[dict[str, Any], Arrays]:
    head, arrays = json.loads(_read(stream)), {}
    for name, kind, shape in head["arrays"]:
        dtype = np.dtype(kind)
        if dtype.kind not in "biuf":
            raise ValueError(f"an array of {dtype}")
        content = _read(stream, dtype.itemsize * math.prod(shape))
        arrays[name] = np.frombuffer(bytearray(content), dtype).reshape(shape)
    return head, arrays


# The other side.


def serve(grader: int, folder: str) -> None:
    """Answer requests until there are no more; what the plug-in prints goes to standard error.

    Where the process ``grader`` is killed this one ends too, and removes its folder.
    """
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The grader ends it.
    _limit()
    threading.Thread(target=_end_with, args=(grader, folder), daemon=True).start()
    name, here, context = pickle.loads(_read(requests))
    served, relay = _Served(name, here, context), Relay()
    while True:
        try:
            what, arguments = pickle.loads(_read(requests))
        except EOFError:
            return
        value, arrays, error = None, {}, ""
        try:
            with blamed(name, "the factory" if what == "make" else f"{what}()"):
                value, arrays = getattr(served, what)(*arguments)
        except PgolfError as mistake:
            error = str(mistake)
        learning = served.learning.gradients, served.learning.steps
        head = {"value": value, "error": error, "events": relay.taken(), "learning": learning}
        _write_answer(answers, head, arrays)


def _end_with(grader: int, folder: str) -> None:
    with unwatched():
        alive = birth(grader)
        while alive is not None and birth(grader) == alive:
            time.sleep(1)
        shutil.rmtree(folder, ignore_errors=True)
        os.killpg(os.getpid(), signal.SIGKILL)


def _limit() -> None:
    """Small files, no memory dumps. Processes are counted by user, with all others of that user: no limit."""
    try:
        import resource
    except ImportError:
        return  # Windows has none.
    for kind, most in ((resource.RLIMIT_FSIZE, FILE_BYTES), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


_Answer = tuple[Any, Mapping[str, Any]]


class _Served:
    """A plug-in, and what can be asked of it."""

    def __init__(self, name: str, folder: Path, context: Context) -> None:
        self.name, self.folder, self.context, self.learning = name, folder, context, Learning()
        self.snapshots: list[Any] = []
        self.subject: Any = None

    def make(self) -> _Answer:
        subject = make_subject(load_factory(self.name, self.folder), self.context, self.name)
        self.subject = subject
        told = subject.function if isinstance(subject, Evaluator) else subject
        about = {
            "kind": "evaluator" if isinstance(subject, Evaluator) else "scorer",
            "documents_independent": bool(getattr(told, "documents_independent", False)),
            "periods": [int(period) for period in getattr(told, "periods", ())],
            "bytes": hasattr(subject, "byte_distributions"),
            "announced": getattr(subject, "takes_announced", False),
            "wanted": getattr(subject, "takes_wanted", False),
        }
        return about, {}

    def held(self) -> _Answer:
        return None, held_by(self.subject)

    def begin(self, first: int, targets: int) -> _Answer:
        return self._call("begin", first, targets)

    def wanted(self) -> _Answer:
        return self._call("wanted", as_type=int)

    def distributions(self, given: Any) -> _Answer:
        return self._rows("distributions", given)

    def losses(self, block: Any) -> _Answer:
        return self._rows("losses", block)

    def byte_distributions(self, given: Any, token: int) -> _Answer:
        return self._rows("byte_distributions", given, token)

    def receive(self, first: int, tokens: Tokens) -> _Answer:
        return self._call("receive", Recorded(first, tokens))

    def state_digest(self) -> _Answer:
        return self._call("state_digest", as_type=str)

    def snapshot(self) -> _Answer:
        self.snapshots.append(self._call("snapshot", as_type=lambda made: made)[0])
        return len(self.snapshots) - 1, {}

    def restore(self, number: int) -> _Answer:
        return self._call("restore", self.snapshots[number])

    def parts(self) -> _Answer:
        return scorer_parts(self.subject), {}

    def evaluate(self, tokens: Tokens, announced: int, wanted: Sequence[int]) -> _Answer:
        with self.learning.watched():
            claim = self.subject(tokens, self.context.byte_table, announced, wanted)
        arrays = {"nats": claim.nats, "positions": claim.positions}
        kinds = []
        for kind, rows in (("d", claim.distributions), ("b", claim.byte_distributions)):
            if rows is not None:
                kinds.append(kind)
                arrays |= {f"{kind}{int(place)}": _as_array(row) for place, row in rows.items()}
        return {"bytes": claim.bytes, "val_bpb": claim.val_bpb, "kinds": kinds}, arrays

    def _call(self, what: str, *arguments: Any, as_type: Callable[[Any], Any] = lambda _: None) -> _Answer:
        return as_type(getattr(self.subject, what)(*arguments)), {}

    def _rows(self, what: str, tokens: NDArray[np.int64], *more: int) -> _Answer:
        with self.learning.watched():
            return None, {"rows": _as_array(getattr(self.subject, what)(torch.from_numpy(tokens), *more))}


def _as_array(array: Any) -> NDArray[Any]:
    if isinstance(array, Tensor):
        array = array.detach().cpu()
        # numpy knows no bfloat16.
        return (array if array.dtype == torch.float64 else array.float()).numpy()
    return np.asarray(array, dtype=np.float64)
