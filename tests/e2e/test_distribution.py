"""What others install: the wheel, by its list of files, and container images, as far as one can read them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pgolf.recipe.files import recipe_names

ROOT = Path(__file__).resolve().parents[2]
IMAGES = sorted((ROOT / "docker").glob("*.Dockerfile"))
INSTRUCTIONS = {"FROM", "ARG", "COPY", "RUN", "USER", "WORKDIR", "ENTRYPOINT", "CMD"}


def test_the_wheel_has_every_file_of_the_package(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    # Elsewhere, so that nothing of an earlier building gets into it.
    shutil.copytree(
        ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "dist").mkdir()
    # As `python -m build` has it built, in one process instead of three.
    words = ["-c", "from setuptools.build_meta import build_wheel; build_wheel('dist')"]
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [path] = (tmp_path / "dist").iterdir()
    with zipfile.ZipFile(path) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
        entry = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
        assert "pgolf = pgolf.cli.main:main" in wheel.read(entry).decode()
    there = {
        str(file.relative_to(ROOT / "src")) for file in (ROOT / "src" / "pgolf").rglob("*") if file.is_file()
    }
    assert held == {name for name in there if "__pycache__" not in name}
    assert {f"pgolf/recipe/{name}.toml" for name in recipe_names()} <= held
    assert {"pgolf/report/page.html", "pgolf/study/steps.toml", "pgolf/submit/readme.md"} <= held


def instructions(path: Path) -> list[tuple[str, str]]:
    """Of a Dockerfile, with lines that go on joined."""
    text = re.sub(r"\\\n", " ", path.read_text(encoding="utf-8"))
    lines = [line.split(None, 1) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line[0], line[1].strip()) for line in lines]


def ignored(name: str) -> bool:
    """Whether .dockerignore keeps a file of the top from the builder: all but what it names."""
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    return "*" in rules and f"!{name}" not in rules


def test_there_is_an_image_for_the_cpu_and_one_for_cuda() -> None:
    assert [path.name for path in IMAGES] == ["cpu.Dockerfile", "cuda.Dockerfile"]


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_an_image_is_made_of_what_is_there(path: Path) -> None:
    found = instructions(path)
    assert {word for word, _ in found} <= INSTRUCTIONS
    [(first, image)] = [entry for entry in found if entry[0] == "FROM"]
    assert found[0] == (first, image)
    # A plain name with its version: no registry's host, nothing that moves.
    assert re.fullmatch(r"[a-z]+(/[a-z]+)?:\d[\w.-]*", image)
    for sources in (rest.split()[:-1] for word, rest in found if word == "COPY"):
        assert all((ROOT / name).exists() and not ignored(name) for name in sources)
    assert "://" not in path.read_text(encoding="utf-8")
    # It is no root that computes, and what is said after the image's name goes to the command.
    last = dict(found)
    assert f"--uid {last['USER']} " in last["RUN"] and json.loads(last["ENTRYPOINT"]) == ["pgolf"]
    assert json.loads(last["CMD"]) == ["--help"]
    assert found.index(("USER", last["USER"])) > max(
        place for place, (word, _) in enumerate(found) if word == "RUN"
    )
    for extra in re.findall(r"\[([\w,]+)\]\"", last["RUN"])[0].split(","):
        assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
