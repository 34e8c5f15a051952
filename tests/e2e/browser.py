"""A real browser for tests: Chromium, driven by the DevTools protocol over a pipe; that needs no client.

Source: https://chromedevtools.github.io/devtools-protocol/.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
    *("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--remote-debugging-pipe"),
)


class Page:
    """A page of a browser of its own."""

    def __init__(self, to: int, answers: int) -> None:
        self._to, self._answers, self._rest, self._number = to, answers, b"", 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        """What the browser has reported."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """The result of a method of the protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                part = os.read(self._answers, 1 << 16)
                assert part, "the browser has ended"
                self._rest += part
            text, _, self._rest = self._rest.partition(b"\0")
            answer = json.loads(text)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def close(self) -> None:
        """End the browser."""
        self.call("Browser.close")

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = 60) -> Any:
        """The value of an expression as soon as it is true."""
        end = time.monotonic() + seconds
        while not (value := self.value(expression)):
            assert time.monotonic() < end, f"{expression} is not true after {seconds} s"
            time.sleep(0.05)
        return value

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def screen(self, width: int, height: int, dark: bool = False) -> None:
        """Show it at a width and height in pixels, light or dark."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def picture(self, path: Path) -> None:
        """Write the whole page as a PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def asked(self) -> list[str]:
        """The addresses that were asked for."""
        requests = [each for each in self.events if each["method"] == "Network.requestWillBeSent"]
        return [each["params"]["request"]["url"] for each in requests]

    def complaints(self) -> list[dict[str, Any]]:
        """What went to the console or the log, and exceptions."""
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [each["params"] for each in self.events if each["method"] in kinds]


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A page in a new browser, whose profile is a new folder."""
    assert BROWSER is not None
    (theirs, to), (answers, ours) = os.pipe(), os.pipe()

    def place() -> None:
        # The browser reads what is asked from its file 3, and answers to file 4.
        high = [fcntl.fcntl(file, fcntl.F_DUPFD, 10) for file in (theirs, ours)]
        for number, file in enumerate(high, 3):
            os.dup2(file, number)

    words = [BROWSER, *_FLAGS, f"--user-data-dir={profile}"]
    process = subprocess.Popen(words, preexec_fn=place, pass_fds=(3, 4), stderr=subprocess.DEVNULL)
    os.close(theirs)
    os.close(ours)
    page = None
    try:
        page = Page(to, answers)
        yield page
    finally:
        if page is not None:
            with contextlib.suppress(AssertionError, OSError):
                page.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()
        os.close(to)
        os.close(answers)
