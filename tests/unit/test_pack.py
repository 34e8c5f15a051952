"""Packing: under the cap or not at all, with the fallbacks in the references' order."""

from __future__ import annotations

import lzma
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pgolf.compress import code_size
from pgolf.compress.container import read_artifact
from pgolf.compress.pack import middle_out, pack, predicted_bytes
from pgolf.compress.weights import load_weights
from pgolf.errors import PgolfError
from pgolf.evaluate.evaluate import evaluate
from pgolf.model.gpt import GPT, build_model
from pgolf.recipe.recipe import Recipe, load_recipe

SMALL = ["model.layers=5", "model.xsa_last=5", "compress.keep_below=512"]
SMALL += ['compress.scheme="rowwise"', 'compress.codec="zstd"', "compress.level=22"]


def state(recipe: Recipe) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    network = build_model(recipe.model, 0)
    return {
        name: value + 0.05 * torch.randn(value.shape, generator=generator)
        for name, value in network.state_dict().items()
    }


def test_the_report_adds_up_and_the_file_reads_back(tmp_path: Path) -> None:
    recipe = load_recipe("tiny", SMALL)
    report = pack(state(recipe), recipe, "abc", tmp_path / "m.pgolf")
    assert report.model_bytes == (tmp_path / "m.pgolf").stat().st_size
    assert report.total_bytes == report.model_bytes + report.code_bytes <= report.cap
    assert sum(group["entries"] for group in report.groups.values()) == sum(
        v.numel() for v in state(recipe).values()
    )
    weights = load_weights(tmp_path / "m.pgolf")
    assert weights.tokenizer_digest == "abc"
    for name, value in state(recipe).items():
        assert (weights.state[name] - value).abs().max() <= 0.02 + value.abs().max() / 60, name


def test_middle_out_order() -> None:
    assert middle_out(11) == [5, 6, 4, 7, 3, 8, 2, 9, 1, 10, 0]
    assert middle_out(4) == [2, 3, 1, 0]
    assert middle_out(1) == [0]


def test_layers_lose_a_bit_from_the_middle_outward_until_it_fits(tmp_path: Path) -> None:
    recipe = load_recipe("tiny", SMALL)
    free = pack(state(recipe), recipe, "", tmp_path / "free.pgolf")
    assert free.five_bit_cores == ()
    tight = pack(state(recipe), recipe, "", tmp_path / "tight.pgolf", cap=free.total_bytes - 1)
    assert tight.five_bit_cores == (2,)
    assert tight.total_bytes < free.total_bytes
    tighter = pack(state(recipe), recipe, "", tmp_path / "tighter.pgolf", cap=tight.total_bytes - 1)
    assert tighter.five_bit_cores == (2, 3)


def test_a_cap_that_is_too_small_says_what_was_reached_and_writes_nothing(tmp_path: Path) -> None:
    recipe = load_recipe("tiny", SMALL)
    with pytest.raises(PgolfError, match=r"cap of 1,000 bytes; the smallest total reached is [\d,]+"):
        pack(state(recipe), recipe, "", tmp_path / "m.pgolf", cap=1000)
    assert list(tmp_path.iterdir()) == []
    stiff = load_recipe("tiny", [*SMALL, 'compress.fallback="none"'])
    free = pack(state(stiff), stiff, "", tmp_path / "m.pgolf")
    with pytest.raises(PgolfError, match=f"smallest total reached is {free.total_bytes:,}"):
        pack(state(stiff), stiff, "", tmp_path / "n.pgolf", cap=free.total_bytes - 1)


def test_levels_are_tried_in_order(tmp_path: Path) -> None:
    sizes = {}
    for level in (1, 19):
        recipe = load_recipe("tiny", [*SMALL, f"compress.level=[{level}]", 'compress.fallback="none"'])
        sizes[level] = pack(state(recipe), recipe, "", tmp_path / f"{level}.pgolf").total_bytes
    both = load_recipe("tiny", [*SMALL, "compress.level=[1, 19]", 'compress.fallback="none"'])
    assert sizes[19] < sizes[1]
    assert pack(state(both), both, "", tmp_path / "a.pgolf").level == 1
    assert pack(state(both), both, "", tmp_path / "b.pgolf", cap=(sizes[1] + sizes[19]) // 2).level == 19


@pytest.mark.parametrize(
    ("name", "published"), [("seed_456", 15_912_000), ("seed_644", 14_418_000), ("seed_1232", 14_360_000)]
)
def test_the_prediction_is_near_the_published_sizes(name: str, published: int) -> None:
    assert predicted_bytes(load_recipe(name)) == pytest.approx(published, rel=0.06)


# The last one is imported by the methods of test-time training that need it.
SCORING = """
import sys, pgolf.compress.container, pgolf.data.dataset, pgolf.evaluate.evaluate
import pgolf.evaluate.lora_scorer
files = (module.__file__ for name, module in sys.modules.items() if name.startswith('pgolf'))
print(*filter(None, files), sep='\\n')
import numpy
from pathlib import Path
from pgolf.compress.container import read_artifact
from pgolf.evaluate.evaluate import evaluate
from pgolf.model.gpt import GPT
artifact = read_artifact(Path(sys.argv[1]))
network = GPT(artifact.recipe.model)
network.load_state_dict(artifact.state)
tokens = (numpy.arange(257) * 7919 % 320).astype(numpy.uint16)
print(evaluate(network, artifact.recipe, tokens, numpy.ones(256, numpy.uint16), mode="sliding").val_loss)
"""


@pytest.fixture(scope="module")
def counted_code(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], float, float]:
    """With nothing but the code that is counted: files that scoring imports, its loss, the library's loss."""
    folder = tmp_path_factory.mktemp("counted")
    recipe = load_recipe("tiny", SMALL)
    pack(state(recipe), recipe, "", folder / "m.pgolf")
    bare = lzma.decompress(
        code_size.packed_code(), format=lzma.FORMAT_RAW, filters=code_size.FILTERS
    ).decode()
    for part in re.split(r"^# (?=\S+\.py$)", bare, flags=re.MULTILINE)[1:]:
        name, _, source = part.partition("\n")
        (folder / "pgolf" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "pgolf" / name).write_text(source)
    (folder / "pgolf" / "__init__.py").touch()  # Without it an installed pgolf would come first.
    command = [sys.executable, "-c", SCORING, str(folder / "m.pgolf")]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr
    *files, loss = done.stdout.split()
    artifact = read_artifact(folder / "m.pgolf")
    network = GPT(artifact.recipe.model)
    network.load_state_dict(artifact.state)
    tokens, bytes_ = (np.arange(257) * 7919 % 320).astype(np.uint16), np.ones(256, np.uint16)
    ours = evaluate(network, artifact.recipe, tokens, bytes_, mode="sliding").val_loss
    return files, float(loss), ours


def test_code_bytes_cover_what_scoring_imports(counted_code: tuple[list[str], float, float]) -> None:
    files, _, _ = counted_code
    imported = {path.split("/pgolf/", 1)[1] for path in files}
    # Where the library begins: signatures, and names for what is imported when it is called.
    imported -= {"__init__.py", "api.py", "runtime/environment.py"}
    imported = {path for path in imported if not path.endswith("/__init__.py")}
    # The kernels are imported on CUDA alone, and coder and trellis by those who need them.
    where_needed = {"compress/entropy.py", "compress/trellis.py", "kernels/bits.py", "kernels/compiled.py"}
    assert imported | {"kernels/cross_entropy.py"} | where_needed == set(code_size.scorer_modules())
    raw = code_size.raw_code_bytes()
    assert raw / 10 < code_size.code_bytes() < raw / 2


def test_bytes_of_code_are_kept_until_the_code_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counted() -> int:
        code_size._counted.cache_clear()
        return code_size.code_bytes()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    true = counted()
    monkeypatch.setattr(code_size, "packed_code", lambda memory: b"other")
    assert counted() == true
    (kept,) = (tmp_path / "pgolf").iterdir()
    kept.write_text("[1")
    assert counted() == 105
    monkeypatch.setattr(code_size, "code_digest", lambda: "changed")
    monkeypatch.setattr(code_size, "packed_code", lambda memory: b"longer")
    assert counted() == 106
    # Where nothing can be written, it is counted each time.
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept))
    assert counted() == 106
    monkeypatch.undo()
    assert counted() == true


def test_the_code_that_is_counted_scores_the_artifact(counted_code: tuple[list[str], float, float]) -> None:
    _, loss, ours = counted_code
    assert loss == ours
