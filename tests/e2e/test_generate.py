"""`pgolf generate`, and the library's pages as they stand."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pydoc_data.topics as topics_of_python
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pgolf as library
from pgolf.generate.model import TextStream
from tests.e2e import fork_server
from tests.e2e.conftest import pgolf, pgolf_json

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def model(workshop: Path) -> tuple[Path | str, ...]:
    return workshop / "model.pgolf", "--tokenizer", workshop / "data" / "tokenizer.model"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def python_blocks(document: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), re.DOTALL)


def test_the_lines_of_the_documents_run_as_they_stand(
    workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    demo = tmp_path / "runs" / "quickstart"
    demo.mkdir(parents=True)
    shutil.copy(workshop / "model.pgolf", demo / "artifact.pgolf")
    shutil.copy(workshop / "data" / "tokenizer.model", demo)
    (tmp_path / "books").mkdir()
    for name in (*sorted(topics_of_python.topics)[:24], "while"):
        (tmp_path / "books" / f"{name}.txt").write_text(topics_of_python.topics[name])
    pgolf(
        "data",
        "prepare",
        "--text",
        "books",
        "--val-fraction",
        "0.1",
        "--vocab-size",
        "512",
        "--out",
        "data/books",
    )
    loading, remembering, training = python_blocks("docs/api.md")
    assert python_blocks("README.md") == [loading]
    assert len(loading.strip().splitlines()) <= 10
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        exec(compile(loading, "loading", "exec"), {})
        exec(compile(remembering, "remembering", "exec"), {})
        exec(compile(training.replace('"train.steps": 200', '"train.steps": 4'), "training", "exec"), {})
    assert out.getvalue().count("bits per byte") == 3
    for made in ("artifact.pgolf", "ledger.ttt.jsonl", "audit.json", "report.html"):
        assert (tmp_path / "runs" / "api" / made).is_file(), made
    assert err.getvalue() == ""


def test_the_library_gives_what_the_commands_give(
    workshop: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = library.load_recipe(workshop / "tiny.toml")
    run = library.train(recipe, tmp_path / "run", workshop / "data", device="cpu")
    assert isinstance(run, library.TrainedRun) and Path(run) == tmp_path / "run" and run.steps == 12
    assert run.weights == tmp_path / "run" / "model.safetensors"
    report = library.pack(run, tmp_path / "x.pgolf")
    assert (tmp_path / "x.pgolf").read_bytes() == (workshop / "model.pgolf").read_bytes()
    assert report.model_bytes == (tmp_path / "x.pgolf").stat().st_size
    score = library.evaluate(
        library.load(tmp_path / "x.pgolf"),
        workshop / "data",
        mode="sliding",
        device="cpu",
        ledger=tmp_path / "l.jsonl",
    )
    assert capfd.readouterr() == ("", "")
    told = pgolf_json("eval", "model.pgolf", "--data", "data", "--mode", "sliding", cwd=workshop)
    assert (score.val_bpb, score.targets, score.bytes) == (told["val_bpb"], told["targets"], told["bytes"])
    assert (tmp_path / "l.jsonl").is_file()
    with pytest.raises(library.PgolfError, match="already finished; choose another out"):
        library.train(recipe, run, workshop / "data")
    library.train(recipe, tmp_path / "loud", workshop / "data", overrides="train.steps=1", progress=True)
    assert "validation" in capfd.readouterr().err


def test_the_prompt_and_the_text_are_printed(model: tuple[Path | str, ...]) -> None:
    arguments = (*model, "--prompt", "The cat", "--tokens", "30", "--seed", "3")
    done = pgolf("generate", *arguments)
    expected = library.load(model[0], model[2]).generate("The cat", max_tokens=30, seed=3)
    assert done.stdout == f"The cat{expected}\n"
    assert done.stderr == ""
    repeated = "no, " * 12
    texts = [
        library.load(model[0], model[2]).generate(repeated, max_tokens=30, seed=3, memory=memory)
        for memory in (False, True)
    ]
    with_memory = pgolf("generate", *model, "--prompt", repeated, "--tokens", "30", "--seed", "3", "--memory")
    assert with_memory.stdout == f"{repeated}{texts[1]}\n" and texts[0] != texts[1]
    told = pgolf_json("generate", *arguments, "--samples", "2")
    assert told["prompt"] == "The cat" and [sample["seed"] for sample in told["samples"]] == [3, 4]
    assert told["samples"][0]["text"] == expected
    assert 1 <= told["samples"][0]["tokens"] <= 30
    assert {sample["ended"] for sample in told["samples"]} <= {"tokens", "document"}
    several = pgolf("generate", *arguments, "--samples", "2").stdout
    assert several.startswith(
        f"--- sample 1 of 2, seed 3 ---\nThe cat{expected}\n\n--- sample 2 of 2, seed 4 ---\nThe cat"
    )


def test_a_seed_is_drawn_and_printed(model: tuple[Path | str, ...]) -> None:
    arguments = ("generate", *model, "--prompt", "The cat", "--tokens", "40")
    done = [pgolf(*arguments) for _ in range(3)]
    assert len({each.stdout for each in done}) > 1
    found = re.fullmatch(r"seed (\d+) \(--seed \1 writes the same\)\n", done[0].stderr)
    assert found is not None
    assert pgolf(*arguments, "--seed", found[1]).stdout == done[0].stdout
    told = pgolf_json(*arguments)["samples"][0]
    assert f"The cat{told['text']}\n" == pgolf(*arguments, "--seed", str(told["seed"])).stdout
    assert pgolf(*arguments, "--temperature", "0").stderr == ""
    opened = library.load(model[0], model[2])
    stream = opened.stream("The cat", max_tokens=40)
    assert "".join(stream) == opened.generate("The cat", max_tokens=40, seed=stream.seed)


def test_the_prompt_from_standard_input(
    model: tuple[Path | str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def given(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    given(b"The old clock\n")
    assert pgolf_json("generate", *model, "--prompt", "-", "--tokens", "3")["prompt"] == "The old clock"
    given(b"\xff\n")
    failed = pgolf("generate", *model, "--prompt", "-", check=2)
    assert "no UTF-8 text (byte 1)" in failed.stderr and failed.stdout == ""


def test_a_terminal_gets_nothing_it_could_act_on(
    model: tuple[Path | str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = "a\x1b[31m\u202eb\nc"
    monkeypatch.setattr(TextStream, "__next__", lambda self: next(self.parts))
    monkeypatch.setattr(TextStream, "parts", iter(()), raising=False)

    def shown(out: io.StringIO) -> str:
        monkeypatch.setattr(TextStream, "parts", iter([hostile]))
        monkeypatch.setattr(sys, "argv", ["pgolf", "generate", *map(str, model), "--prompt", "x"])
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            from pgolf.cli.main import main

            main()
        return out.getvalue()

    assert shown(Terminal()) == "xa\ufffd[31m\ufffdb\nc\n"
    assert shown(io.StringIO()) == f"x{hostile}\n"


def test_ctrl_c_keeps_what_is_there(model: tuple[Path | str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    following = TextStream.__next__

    def interrupted(stream: TextStream) -> str:
        if len(stream.tokens) >= 5:
            raise KeyboardInterrupt
        return following(stream)

    monkeypatch.setattr(TextStream, "__next__", interrupted)
    arguments = (
        "generate",
        *model,
        "--prompt",
        "The cat",
        "--past-document",
        "--samples",
        "3",
        "--seed",
        "0",
    )
    done = pgolf(*arguments, check=130)
    assert done.stdout.startswith("--- sample 1 of 3, seed 0 ---\nThe cat") and done.stdout.endswith("\n")
    assert "sample 2" not in done.stdout
    assert re.fullmatch(r"pgolf: stopped after \d+ tokens\n", done.stderr)
    told = json.loads(pgolf(*arguments, "--json", check=130).stdout)
    assert [sample["ended"] for sample in told["samples"]] == ["interrupted"]


@pytest.mark.skipif(os.name != "posix", reason="pipes that close")
def test_a_reader_that_has_enough_is_no_mistake(model: tuple[Path | str, ...]) -> None:
    words = ["generate", *map(str, model), "--tokens", "400", "--past-document", "--seed", "0"]
    command = [str(fork_server.python()), "-m", "pgolf", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tokens", "0"), "0 tokens asked for"),
        (("--temperature", "-1"), "temperature -1"),
        (("--top-p", "1.5"), "top_p 1.5"),
        (("--top-k", "0"), "top_k 0"),
        (("--seed", "-1"), "seed -1"),
        (("--stop", ""), "empty stop string"),
        (("--samples", "0"), "--samples"),
        (("--temperature", "warm"), "--temperature"),
    ],
)
def test_mistakes(model: tuple[Path | str, ...], arguments: tuple[str, ...], message: str) -> None:
    done = pgolf("generate", *model, "--prompt", "x", *arguments, check=2)
    assert message in done.stderr and done.stderr.count("\n") == 1 and done.stdout == ""


def test_mistakes_in_files(workshop: Path, tmp_path: Path) -> None:
    damaged, tokenizer = tmp_path / "damaged.pgolf", workshop / "data" / "tokenizer.model"
    content = bytearray((workshop / "model.pgolf").read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    shutil.copy(workshop / "model.pgolf", tmp_path / "alone.pgolf")
    (tmp_path / "other.model").write_bytes(tokenizer.read_bytes() + b"\x1a\x00")
    for arguments, message in (
        ((damaged, "--tokenizer", tokenizer), "damaged.pgolf"),
        ((tmp_path / "absent.pgolf",), "no such file"),
        ((tmp_path / "alone.pgolf",), "pass --tokenizer"),
        ((tmp_path / "alone.pgolf", "--tokenizer", tmp_path / "other.model"), "is not the tokenizer of"),
        ((tmp_path / "alone.pgolf", "--tokenizer", damaged), "not a SentencePiece model"),
    ):
        done = pgolf("generate", *arguments, "--prompt", "x", check=2)
        assert message in done.stderr and done.stderr.count("\n") == 1 and done.stdout == ""
