"""Every command in docs/ works: each is run as it stands, with its recipe shrunk to seconds.

README.md has a test of its own.
"""

from __future__ import annotations

import multiprocessing
import pydoc_data.topics as topics_of_python
import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.e2e.conftest import made_once, pgolf, sentences

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
# From top to bottom: audits in tests/audit/test_command.py, the tutorial in test_readme.py.
ALONE = ("audit.md", "tutorial.md")
TYPED = [page for page in PAGES if page.name not in ALONE and "```sh" in page.read_text(encoding="utf-8")]
# Commands that need what a test cannot have; their parts are tested elsewhere.
ELSEWHERE = {
    "data fetch": "tests/unit/test_fetch.py runs it against a stand-in for the hub",
    **dict.fromkeys(
        (
            *("export", "eval models/small", "verify-ledger small.jsonl", "audit models/small"),
            "data prepare --text books/*.txt --val-fraction 0.1 --tokenizer models/small",
        ),
        "tests/e2e/test_other_tools.py does it where transformers is installed",
    ),
    "import": "tests/golden reads the references' own files",
    "significance runs": "tests/e2e/test_significance.py makes the runs",
    "study ttt": "tests/e2e/test_study.py runs it without SLURM",
    "study steps": "tests/unit/test_study_spec.py checks it, tests/e2e/test_study.py shows a plan",
    "serve": "tests/e2e/test_serve.py starts and ends it",
    "submit": "tests/e2e/test_submit.py runs it",
    "launch slurm": "tests/e2e/test_launch.py runs it without SLURM, tests/slurm with",
}
SHRUNK = [
    *("model.layers=2", "model.width=32", "model.heads=2", "model.kv_heads=1", "model.mlp_hidden=32"),
    *("model.bigram.buckets=64", "model.bigram.width=16", "model.xsa_last=2"),
    *("model.unique_layers=0", "model.value_embedding.layers=[]", "model.rope_dims=0"),
    *("train.steps=2", "train.warmdown_steps=1", "train.warmup_steps=0", "train.batch_tokens=64"),
    *(
        "train.sequence_length=32",
        "train.micro_batches=1",
        "evaluate.stride=16",
        "evaluate.sequence_length=0",
    ),
    *("ttt.chunk_tokens=512", "ttt.epochs=1", "ttt.frozen_blocks=0", "compress.calibration_tokens=256"),
    "memory.enabled=false",  # The README's demo has one.
]
TOPICS = sorted(topics_of_python.topics)
SHRINKABLE = ("train ", "run ", "launch ", "bench train", "bench eval", "bench ttt", "bench pack")


def commands(document: Path) -> list[list[str]]:
    """The pgolf commands in a document's shell blocks, in order, as words."""
    blocks = re.findall(r"```sh\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("pgolf ")]


@pytest.fixture(scope="module")
def supplies(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of 1,024 and of 512 pieces, as the documents have them; a run on the former with its artifact."""

    def make(folder: Path) -> None:
        (folder / "train.txt").write_text("\n\n".join(topics_of_python.topics[name] for name in TOPICS[::5]))
        text = ("--text", "train.txt", "--val-text", workshop / "val.txt", "--split", "blank-lines")
        for name, pieces in (("web", 1024), ("books", 512)):
            pgolf("data", "prepare", *text, "--vocab-size", str(pieces), "--out", f"data/{name}", cwd=folder)
        recipe = ("--recipe", workshop / "tiny.toml", "--set", "model.vocab_size=1024")
        pgolf("train", *recipe, "--data", "data/web", "--out", "run", cwd=folder)
        pgolf("pack", "run", "--out", "model.pgolf", cwd=folder)

    return made_once(tmp_path_factory, "supplies", make)


@pytest.fixture
def desk(supplies: Path, tmp_path: Path) -> Path:
    """A folder with everything that the documents name, but for the data that they make themselves."""
    desk = tmp_path
    (desk / "books").mkdir()
    # What is compressed is short: every token takes a step of the model, there and back.
    (desk / "books" / "one.txt").write_text("\n\n".join(sentences(20, seed=4)))
    topics = [topics_of_python.topics[name] for name in TOPICS]
    for index in range(4):
        (desk / "books" / f"book{index}.txt").write_text("\n\n".join(topics[index:32:4]))
    (desk / "notes.txt").write_text("\n\n".join(topics[:8]))
    for name, count in (("train.jsonl", 200), ("val.jsonl", 10)):
        lines = [f'{{"text": "{text}"}}' for text in sentences(count, seed=5)]
        (desk / name).write_text("\n".join(lines))
    for name in ("web", "fineweb/datasets/fineweb10B_sp1024"):
        shutil.copytree(supplies / "data" / "web", desk / "data" / name)
    shutil.copytree(supplies / "run", desk / "runs" / "first")
    shutil.copy(supplies / "model.pgolf", desk / "model.pgolf")
    # Which kind a tokenizer is of does not depend on its name.
    for name in ("sp.model", "tokenizer.json"):
        shutil.copy(supplies / "data" / "web" / "tokenizer.model", desk / name)
    (desk / "bare").mkdir()
    for shard in (supplies / "data" / "web").glob("*.bin"):
        shutil.copy(shard, desk / "bare")
    (desk / "wide.toml").write_text(
        'extends = "seed_1232"\n[model]\nlayers = 9\nxsa_last = 9\nmlp_hidden = 2048\n'
    )
    study = re.findall(
        r"```toml\n(.*?)```", (ROOT / "docs" / "studies.md").read_text(encoding="utf-8"), re.DOTALL
    )[0]
    study = study.replace("seeds = [1, 2]", "seeds = [1]").replace("[0.02, 0.03]", "[0.02]")
    study = study.replace("[base]", "[base]\ncompress.calibration_tokens = 256\nmodel.width = 32\n")
    study = study.replace("train.steps = 20", "train.steps = 4").replace("_steps = 10", "_steps = 2")
    (desk / "rates.toml").write_text(study)
    return desk


def _with_files(arguments: list[str], folder: Path) -> list[str]:
    """Expand patterns as a shell does."""
    return [
        path
        for word in arguments
        for path in (sorted(str(p.relative_to(folder)) for p in folder.glob(word)) if "*" in word else [word])
    ]


@pytest.fixture
def quick_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain way of a benchmark is a fork, and what it compares is not how fast that starts."""
    forking = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda how: forking)


@pytest.mark.usefixtures("quick_python", "quick_bench")
@pytest.mark.parametrize("document", TYPED, ids=lambda path: path.name)
def test_commands_of_a_document(
    desk: Path, supplies: Path, document: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The doctor's program for the compiler runs uncompiled; test_commands.py compiles it.
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    if ["--out", "data/books"] not in [words[-2:] for words in commands(document)]:
        shutil.copytree(supplies / "data" / "books", desk / "data" / "books")
    for words in commands(document):
        if any(" ".join(words).startswith(prefix) for prefix in ELSEWHERE) or "imported.safetensors" in words:
            continue
        arguments = list(words)
        if " ".join(words[:2]).startswith(SHRINKABLE) and "--resume" not in words:
            arguments += [word for setting in SHRUNK for word in ("--set", setting)]
            if words[0] in ("train", "run") and "--data" not in words:
                arguments += ["--data", "data/web"]
        if words[0] == "run":
            arguments += ["--no-audit"]
        if words[0] == "audit" and "--targets" not in words:
            arguments += ["--targets", "192"]
        if words == ["doctor"]:  # The next one looks at the compiler.
            arguments += ["--compile-seconds", "0"]
        if "--repeats" in words:
            arguments += ["--repeats", "2"]
        pgolf(*_with_files(arguments, desk), cwd=desk)


def test_documents_name_only_what_exists() -> None:
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES):
        for target, place in re.findall(
            r"\]\(([^)#:]*)(?:#([^)]*))?\)", document.read_text(encoding="utf-8")
        ):
            page = document.parent / target if target else document
            assert page.exists(), f"{document.name} links to {target}"
            assert not place or place in headings(page), f"{document.name} links to {target}#{place}"


def headings(page: Path) -> set[str]:
    """The names by which links find a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_elsewhere_is_true() -> None:
    assert (ROOT / "tests" / "unit" / "test_fetch.py").is_file()
    assert (ROOT / "tests" / "audit" / "test_command.py").is_file()
    assert (ROOT / "tests" / "golden" / "test_evaluation.py").is_file()
    assert (ROOT / "tests" / "e2e" / "test_launch.py").is_file()
    assert (ROOT / "tests" / "e2e" / "test_submit.py").is_file()
    assert (ROOT / "tests" / "slurm" / "test_slurm.py").is_file()
    assert (ROOT / "tests" / "e2e" / "test_significance.py").is_file()
