"""What `pgolf serve` does: open the model, make everything ready, and answer until it is interrupted."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from pgolf.errors import PgolfError
from pgolf.serve.worker import Limits, Worker

# Seconds that answers in progress have to end with the server.
_LAST_WORDS = 5


def serve(
    path: Path,
    tokenizer: Path | None,
    mode: str | None,
    host: str,
    port: int,
    limits: Limits,
    tell: Callable[[str], None],
    ready: Callable[[str], None],
) -> None:
    """Serve a model until SIGINT or SIGTERM.

    Args:
        path: artifact, weights file or run folder.
        tokenizer: of the model, where it cannot be found.
        mode: "sliding" scores with the model alone, "ttt" in all ways that the artifact has.
        host, port: where to listen; port 0 takes a free one.
        limits: of requests.
        tell: told what takes long, and what is risky.
        ready: told the address when requests are answered.

    Raises:
        PgolfError: a package is not installed, the address is taken, or the model cannot be used.
    """
    if missing := [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]:
        raise PgolfError(f"pgolf serve needs {missing[0]}: pip install 'pgolf[serve]'")
    with _listen(host, port) as listening:
        import uvicorn

        from pgolf.generate.model import Model
        from pgolf.serve.analysis import analyse, ways_of
        from pgolf.serve.app import make_app

        tell(f"loading {path}")
        model = Model(path, tokenizer)
        ways = ways_of(model, mode)
        if "memory" in ways:
            tell("loading the memory; its kernels are compiled the first time, for half a minute")
        for _ in analyse(model, ways, "a"):
            pass  # So that the first request need not wait for what is made once.
        worker = Worker(limits.concurrency)
        app = make_app(model, ways, limits, [host], worker)
        config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=_LAST_WORDS)

        class Server(uvicorn.Server):
            def handle_exit(self, sig: int, frame: FrameType | None) -> None:
                worker.closing = True
                super().handle_exit(sig, frame)

        bound = listening.getsockname()
        ready(f"http://{f'[{host}]' if ':' in host else host}:{bound[1]}/")
        Server(config).run([listening])


def _listen(host: str, port: int) -> socket.socket:
    """A socket at an address, which must be this machine's and free."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except (OSError, OverflowError) as error:
        remedy = "choose another --port (0 takes a free one) or --host"
        raise PgolfError(f"{host}:{port}: cannot listen there ({error}); {remedy}") from error
    return listening
