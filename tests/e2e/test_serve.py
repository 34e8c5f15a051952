"""`pgolf serve`: what its endpoints answer and refuse, the command, and the page in a real browser."""

from __future__ import annotations

import http.client
import importlib.util
import itertools
import json
import lzma
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from pgolf.compress.weights import load_weights, save_weights
from pgolf.generate.model import Model
from pgolf.generate.sampling import Sampling
from tests.e2e import fork_server
from tests.e2e.browser import BROWSER, browser
from tests.e2e.conftest import pgolf, sentences

uvicorn = pytest.importorskip("uvicorn", reason="the package uvicorn is not installed")
pytest.importorskip("starlette", reason="the package starlette is not installed")

from pgolf.serve.analysis import ways_of  # noqa: E402
from pgolf.serve.app import make_app  # noqa: E402
from pgolf.serve.completions import Completion  # noqa: E402
from pgolf.serve.worker import Limits, Worker  # noqa: E402

SENTENCES = sentences(40, seed=2)
TEXT = " ".join(SENTENCES)
LIMITS = Limits(max_body=8192, max_tokens=60, concurrency=3)


class Served(NamedTuple):
    """A model, and where it is served."""

    model: Model
    worker: Worker
    port: int

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any, http.client.HTTPMessage]:
        """Status, answer (as JSON where it is) and headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        content = body if body is None or isinstance(body, bytes | Iterator) else json.dumps(body)
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET" if body is None else "POST", path, content, given)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        is_json = answer.headers.get_content_type() == "application/json"
        return answer.status, json.loads(text) if is_json else text, answer.headers

    def complete(self, **request: Any) -> Any:
        status, answer, _ = self.ask("/v1/completions", request)
        assert status == 200, answer
        return answer

    def stream(self, **request: Any) -> list[Any]:
        """The events of a streamed completion."""
        *events, end, nothing = self.complete(stream=True, **request).split("\n\n")
        assert (end, nothing) == ("data: [DONE]", "")
        return [json.loads(event.removeprefix("data: ")) for event in events]

    def analyze(self, text: str, **more: Any) -> Any:
        status, answer, _ = self.ask("/analyze", {"text": text, **more})
        assert status == 200, answer
        return answer


@pytest.fixture(scope="module")
def served(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The workshop's model with a memory beside it."""
    packed = load_weights(workshop / "model.pgolf")
    recipe = packed.recipe.with_overrides(["memory.enabled=true", "memory.order=2", "ttt.lr=0.02"])
    path = tmp_path_factory.mktemp("serve") / "model.safetensors"
    save_weights(path, packed.state, recipe, packed.tokenizer_digest)
    model, worker = Model(path, workshop / "data" / "tokenizer.model"), Worker(LIMITS.concurrency)
    listening = socket.create_server(("127.0.0.1", 0))
    app = make_app(model, ways_of(model), LIMITS, ["name.example"], worker)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    yield Served(model, worker, listening.getsockname()[1])
    server.should_exit = True
    thread.join()
    listening.close()


def logs(model: Model, tokens: list[int]) -> torch.Tensor:
    return model.logits(tokens).double().log_softmax(-1)


@pytest.mark.parametrize("memory", [False, True])
def test_a_completion_is_what_generate_writes(served: Served, memory: bool) -> None:
    how: dict[str, Any] = {"max_tokens": 50, "temperature": 0.9, "top_p": 0.95, "seed": 4, "memory": memory}
    text = served.model.generate("The cat", **how)
    answer = served.complete(prompt="The cat", **how)
    choice, usage = answer["choices"][0], answer["usage"]
    assert (answer["object"], choice["text"], choice["logprobs"]) == ("text_completion", text, None)
    stream = served.model.stream("The cat", **how)
    assert "".join(stream) == text
    assert choice["finish_reason"] == {"tokens": "length", "document": "stop"}[stream.ended]
    prompt = len(served.model.encode("The cat")) - 1
    assert usage == {
        "prompt_tokens": prompt,
        "completion_tokens": len(stream.tokens),
        "total_tokens": prompt + len(stream.tokens),
    }
    events = served.stream(prompt="The cat", stream_options={"include_usage": True}, **how)
    assert "".join(event["choices"][0]["text"] for event in events[:-1]) == text
    assert len(events) > 10 and events[-1]["usage"] == usage and events[-1]["choices"] == []
    assert [event["choices"][0]["finish_reason"] for event in events[-3:-1]] == [
        None,
        choice["finish_reason"],
    ]
    tokens = served.complete(prompt=[served.model.encode("The cat")[1:]], **how)
    assert tokens["choices"][0]["text"] == text


def test_stop_and_echo(served: Served) -> None:
    how: dict[str, Any] = {"prompt": "The old", "max_tokens": 60, "temperature": 0}
    text = served.complete(**how)["choices"][0]["text"]
    stop = text[8:11]
    expected = text[: text.index(stop)]
    choice = served.complete(stop=stop, echo=True, **how)["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("The old" + expected, "stop")
    events = served.stream(stop=[stop, "\x00"], **how)
    assert "".join(event["choices"][0]["text"] for event in events) == expected


def test_logprobs_are_the_models(served: Served) -> None:
    prompt, count = "The cat sees", 6
    answer = served.complete(prompt=prompt, max_tokens=count, seed=1, logprobs=3, echo=True, temperature=0.5)
    choice = answer["choices"][0]
    found = choice["logprobs"]
    read = served.model.encode(prompt)
    stream = served.model.stream(prompt, max_tokens=count, seed=1, temperature=0.5)
    assert prompt + "".join(stream) == choice["text"] == "".join(found["tokens"])
    tokens = [*read, *stream.tokens]
    rows = logs(served.model, tokens[:-1])
    expected = [float(row[token]) for row, token in zip(rows, tokens[1:], strict=True)]
    assert found["token_logprobs"] == pytest.approx(expected, abs=1e-4)
    for top, row, token in zip(found["top_logprobs"], rows, found["tokens"], strict=True):
        assert sorted(top.values())[-3:] == pytest.approx(sorted(row.tolist())[-3:], abs=1e-4)
        assert token in top and 3 <= len(top) <= 4
    starts = [choice["text"][start:] for start in found["text_offset"]]
    assert all(rest.startswith(token) for rest, token in zip(starts, found["tokens"], strict=True))
    scored = served.complete(prompt=prompt, max_tokens=0, logprobs=0, echo=True)["choices"][0]
    assert scored["text"] == prompt and scored["logprobs"]["top_logprobs"] is None
    assert scored["logprobs"]["token_logprobs"] == pytest.approx(expected[: len(read) - 1], abs=1e-4)
    streamed = served.stream(prompt=prompt, max_tokens=count, seed=1, temperature=0.5, logprobs=0)
    pieces = [price for event in streamed for price in event["choices"][0]["logprobs"]["token_logprobs"]]
    assert pieces == pytest.approx(expected[len(read) - 1 :], abs=1e-4)


def test_a_character_in_bytes_comes_whole(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, text = served.model.tokenizer, "é☃ok"
    tokens = tokenizer.encode(text)
    assert len(tokens) > len(text)
    drawn = itertools.cycle(tokens)
    monkeypatch.setattr(Sampling, "draw", lambda self, logits, generator: next(drawn))
    events = served.stream(prompt="a", max_tokens=len(tokens), logprobs=0)
    choices = [event["choices"][0] for event in events]
    assert "".join(choice["text"] for choice in choices) == tokenizer.decode(tokens)
    assert not any("\ufffd" in choice["text"] for choice in choices)
    names = [name for choice in choices for name in choice["logprobs"]["tokens"]]
    assert len(names) == len(tokens) and "bytes:\\xe2" in names
    # Where it does not become whole, the end says so.
    drawn = itertools.cycle(tokenizer.encode("☃")[-3:-1])
    assert served.complete(prompt="a", max_tokens=2)["choices"][0]["text"].strip() == "\ufffd"


def test_the_analysis_is_the_score_of_every_way(served: Served) -> None:
    model, found = served.model, served.analyze(TEXT)
    assert found["ways"] == ["model", "ttt", "memory"]
    assert "".join(span["text"] for span in found["tokens"]) == TEXT
    assert found["tokens"][-1]["end"] == len(model.encode(TEXT)) - 1
    size = len(TEXT.encode())
    assert found["bytes"]["text"] == found["bytes"]["normalised"] == size
    assert lzma.decompress(lzma.compress(TEXT.encode(), preset=9 | lzma.PRESET_EXTREME)) == TEXT.encode()
    assert 0 < found["bytes"]["xz"] < size
    scores = [model.score(TEXT), model.score(TEXT, "ttt"), model.score(TEXT, memory=True)]
    assert len({round(score.val_bpb, 6) for score in scores}) == 3
    for index, score in enumerate(scores):
        # A memory's tables are sized by the text, and here for all texts of about one length.
        close = 5e-3 if index == 2 else 1e-6
        assert found["bits"][index] / size == pytest.approx(score.val_bpb, rel=close)
        assert sum(span["bits"][index] for span in found["tokens"]) == pytest.approx(found["bits"][index])


def test_the_past_does_not_depend_on_the_future(served: Served) -> None:
    half = len(served.model.encode(" ".join(SENTENCES[:20]))) - 1
    assert half > served.model.recipe.ttt.chunk_tokens
    other = " ".join([*SENTENCES[:20], *SENTENCES[:19:-1]])
    one, another = (served.analyze(text)["tokens"] for text in (TEXT, other))
    assert len(one) == len(another)
    for place, (here, there) in enumerate(zip(one, another, strict=True)):
        if place < half:
            assert here["text"] == there["text"] and here["bits"] == pytest.approx(there["bits"], abs=1e-4)
    assert one[half:] != another[half:]
    learned = [span["bits"][1] - span["bits"][0] for span in one]
    assert max(map(abs, learned[:200])) < 1e-4 < max(map(abs, learned))


def test_what_may_come_next(served: Served) -> None:
    text = "The cat sees the green house. It was"
    tokens, last = served.model.encode(text), served.analyze(text)
    assert served.analyze(text, at=len(tokens) - 1) == {"next": last["next"]}
    for place in (0, 3, len(tokens) - 1):
        row = logs(served.model, tokens[: place + 1])[-1].exp()
        entries = served.analyze(text, at=place)["next"]
        best = sorted((entry["p"][0] for entry in entries), reverse=True)[:10]
        assert best == pytest.approx(sorted(row.tolist(), reverse=True)[:10], abs=1e-5)
        mixed = [entry["p"][-1] for entry in entries]
        assert mixed == sorted(mixed, reverse=True) and all(len(entry["p"]) == 3 for entry in entries)
    status, answer, _ = served.ask("/analyze", {"text": text, "at": len(tokens)})
    assert status == 400 and f"the text has {len(tokens) - 1} tokens" in answer["error"]["message"]
    nothing = served.analyze("")
    assert (nothing["tokens"], nothing["bits"]) == ([], [0, 0, 0]) and len(nothing["next"]) >= 10
    assert ways_of(served.model, "sliding").keys() == {"model"}


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (b"{", "no JSON"),
        (b"[" * 5000, "no JSON"),
        (b"\xff", "no JSON"),
        (["x"], "JSON object"),
        ({"prompt": 3}, "prompt: "),
        ({"prompt": ["a", "b"]}, "prompt: one at a time"),
        ({"prompt": [999]}, "prompt: token 999"),
        ({"prompt": "\ud800"}, "prompt: the text is no valid Unicode"),
        ({"promt": "x"}, "promt: "),
        ({"n": 2}, "n: only 1"),
        ({"n": True}, "n: only 1"),
        ({"frequency_penalty": False}, "frequency_penalty: only 0"),
        ({"suffix": "x"}, "suffix: only"),
        ({"logit_bias": {"5": 1}}, "logit_bias: only {}"),
        ({"stream_options": {"include_usages": True}}, "stream_options.include_usages: "),
        ({"stream_options": {"include_usage": 1}}, "stream_options: "),
        ({"model": "other"}, "model: there is no 'other'"),
        ({"max_tokens": 61}, "max_tokens: at most 60"),
        ({"max_tokens": 0}, "max_tokens: 0"),
        ({"max_tokens": "3"}, "max_tokens: "),
        ({"max_tokens": True}, "max_tokens: "),
        ({"temperature": -1}, "temperature -1"),
        ({"top_p": 2}, "top_p 2"),
        ({"logprobs": 6}, "logprobs: "),
        ({"stop": ["a"] * 5}, "stop: at most 4"),
        ({"stop": ""}, "stop: an empty text"),
        ({"seed": -1}, "seed -1"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_request_is_one_line(served: Served, request_: Any, message: str, stream: bool) -> None:
    body = {**request_, "stream": stream} if isinstance(request_, dict) else request_
    status, answer, _ = served.ask("/v1/completions", body)
    error = answer["error"]
    assert status == 400 and error["type"] == "invalid_request_error", answer
    assert message in error["message"] and "\n" not in error["message"]
    named = re.split("[ :.]", message)[0]
    assert error["param"] == (None if named in ("no", "JSON", "promt") else named)
    assert served.worker.works == 0


def test_a_body_is_not_read_beyond_the_limit(served: Served) -> None:
    large = json.dumps({"text": "x" * LIMITS.max_body}).encode()
    for body in (large, iter([large[:5000], large[5000:]])):
        status, answer, _ = served.ask("/analyze", body)
        assert status == 413 and "8,192 bytes" in answer["error"]["message"]
    assert served.ask("/analyze", {"text": "x" * 1000})[0] == 200


def test_more_requests_than_there_may_be(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.worker, "works", LIMITS.concurrency)
    for path, body in (("/v1/completions", {"prompt": "x"}), ("/analyze", {"text": "x"})):
        status, answer, _ = served.ask(path, body)
        assert status == 429 and answer["error"]["type"] == "server_busy"


@pytest.mark.parametrize("stream", [False, True])
def test_who_goes_away_ends_the_work(served: Served, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    steps: list[int] = []

    def endless(self: Completion) -> Iterator[Any]:
        for number in itertools.count():
            steps.append(number)
            time.sleep(0.01)
            yield self._chunk("x", None)

    monkeypatch.setattr(Completion, "steps", endless)
    body = json.dumps({"prompt": "x", "stream": stream}).encode()
    with socket.create_connection(("127.0.0.1", served.port)) as client:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        end = time.monotonic() + 20
        while not steps and time.monotonic() < end:
            time.sleep(0.01)
        if stream:
            assert client.recv(100).startswith(b"HTTP/1.1 200")
        # Meanwhile others are answered: the worker takes steps in turn.
        assert served.worker.works == 1 and len(served.analyze("The cat")["tokens"]) > 1
    while served.worker.works and time.monotonic() < end:
        time.sleep(0.01)
    assert steps and served.worker.works == 0
    done = len(steps)
    time.sleep(0.1)
    assert len(steps) <= done + 1


def test_other_names_and_other_pages_are_refused(served: Served) -> None:
    for host in ("127.0.0.1", f"localhost:{served.port}", "[::1]:80", "NAME.example"):
        assert served.ask("/about", Host=host)[0] == 200, host
    for host in ("evil.example", "127.0.0.1.evil.example", "", "[", "localhost@evil.example:8000"):
        status, answer, headers = served.ask("/about", Host=host)
        assert status == 403 and "--host" in answer["error"]["message"], host
    own = f"http://127.0.0.1:{served.port}"
    for origin, expected in ((own, 200), ("https://evil.example", 403), ("null", 403), ("http://[", 403)):
        assert served.ask("/analyze", {"text": "x"}, Origin=origin)[0] == expected, origin
    status, _, headers = served.ask("/", Origin=own)
    assert status == 200 and headers["content-security-policy"].startswith("default-src 'self'")
    assert not [name for name in headers if name.lower().startswith("access-control")]


def test_models_and_other_paths(served: Served) -> None:
    entry = served.ask("/v1/models")[1]["data"][0]
    assert entry["id"] == served.model.recipe.name and entry["object"] == "model"
    assert served.complete(model=entry["id"], prompt="x", max_tokens=1)["model"] == entry["id"]
    for path, body, expected in (("/v1/chat", None, 404), ("/v1/completions", None, 405)):
        status, answer, _ = served.ask(path, body)
        assert status == expected and answer["error"]["message"]


def test_the_command(workshop: Path, tmp_path: Path) -> None:
    words = ["serve", "model.pgolf", "--tokenizer", "data/tokenizer.model", "--port", "0"]
    command = [str(fork_server.python()), "-m", "pgolf", *words]
    files: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=workshop, **files) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            port = int(process.stdout.readline().strip().rstrip("/").rpartition(":")[2])
            served = Served(Model(workshop / "model.pgolf"), Worker(1), port)
            assert served.ask("/about")[1]["ways"] == ["model", "ttt"]
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
            assert process.stderr.read() == "loading model.pgolf\nstopped\n"
        finally:
            process.kill()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = pgolf(*words[:-1], str(port), cwd=workshop, check=2)
        assert f"127.0.0.1:{port}: cannot listen there" in done.stderr and done.stderr.count("\n") == 1


def test_mistakes(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words, message in (
        (("absent.pgolf", "--port", "0"), "absent.pgolf: no such file"),
        (("model.pgolf", "--mode", "fast"), "--mode fast"),
        (("model.pgolf", "--host", "256.0.0.1"), "cannot listen there"),
        (("model.pgolf", "--port", "70000"), "--port"),
    ):
        assert message in pgolf("serve", *words, cwd=workshop, check=2).stderr.splitlines()[-1]
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else found(name))
    done = pgolf("serve", "model.pgolf", cwd=workshop, check=2)
    assert done.stderr == "pgolf: error: pgolf serve needs uvicorn: pip install 'pgolf[serve]'\n"


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")
def test_the_page(served: Served, tmp_path: Path) -> None:
    address, text = f"http://127.0.0.1:{served.port}/", "The cat sees <b>the</b> green house."
    spans = "[...document.querySelectorAll('#view span')]"
    settled = "!document.querySelector('#view.stale') && document.querySelector('#stop').hidden"
    with browser(tmp_path / "profile") as page:
        page.screen(1280, 900)
        page.call("Page.navigate", url=address)
        page.wait("document.querySelectorAll('#likeliest tr').length == 10")
        page.value("document.querySelector('#text').focus()")
        page.type(text)
        page.wait(f"{spans}.length > 5 && {settled}")
        assert (
            page.value(f"{spans}.map(span => span.textContent).join('')")
            == "The cat sees <b>the</b> green house."
        )
        assert page.value(f"new Set({spans}.map(span => span.style.background)).size") > 3
        page.value("document.querySelector('#seed').value = 3; document.querySelector('#write').click()")
        page.wait(f"document.querySelector('#text').value.length > 60 && {settled}")
        written = text + served.model.generate(text, max_tokens=60, seed=3)
        assert page.value("document.querySelector('#text').value") == written
        page.wait(f"{settled} && {spans}.every(span => span.end)")
        page.value(f"{spans}[4].click()")
        page.wait("document.querySelector('#place').textContent.startsWith('In place of')")
        assert page.value("document.querySelectorAll('#sizes tr').length") == 5
        assert not page.value("document.querySelector('#changed').hidden")
        for button in range(5):
            page.value(f"document.querySelectorAll('#ways button')[{button}].click()")
        page.value("document.querySelector('#back').click()")
        page.wait(f"document.querySelector('#text').value.length == {len(text)} && {settled}")
        page.screen(360, 800, dark=True)
        assert page.value("document.documentElement.scrollWidth") <= 360
        assert page.value("getComputedStyle(document.body).backgroundColor") == "rgb(18, 22, 28)"
        assert page.complaints() == []
        assert all(url.startswith((address, "data:,")) for url in page.asked())
        assert {url.removeprefix(address) for url in page.asked()} >= {
            "page.css",
            "page.js",
            "v1/completions",
        }
