"""`pgolf inspect`, `pgolf pack --compare` and `pgolf bench coders`, as a user types them."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from rich.console import Console

from pgolf.compress.container import encode_artifact, read_artifact
from pgolf.compress.stored import Quantized
from pgolf.recipe.recipe import load_recipe
from tests.e2e.conftest import pgolf, pgolf_json
from tests.e2e.test_mistakes import fails

CODERS = [
    "torch.save + zstd-16",
    "torch.save + zstd-22",
    "raw arrays + zstd-22",
    "raw arrays + brotli-11",
    "raw arrays + lzma-9e",
    "order-0 entropy",
    "range coder",
]
# Packing that takes no calibration: what is compared does not matter here.
QUICK = [
    *("--set", "compress.scheme=rowwise", "--set", "compress.rounding=nearest"),
    *("--set", "compress.calibration=none"),
]


def table_of(text: str, first: str) -> dict[str, list[str]]:
    """The rows of the table whose first header cell is ``first``, by their first cell."""
    rows: dict[str, list[str]] = {}
    lines = iter(text.splitlines())
    for line in lines:
        if re.match(rf"┃ {first} +┃", line):
            break
    for line in lines:
        if line.startswith("└"):
            break
        if line.startswith("│"):
            cells = [cell.strip() for cell in line.strip("│").split("│")]
            rows[cells[0]] = cells[1:]
    assert rows, text
    return rows


def test_inspect_shows_every_tensor(workshop: Path) -> None:
    artifact = read_artifact(workshop / "model.pgolf")
    text = pgolf("inspect", "model.pgolf", "--codes", cwd=workshop).stdout
    rows = table_of(text, "tensor")
    assert set(artifact.stored) <= set(rows)
    for name, value in artifact.stored.items():
        if isinstance(value, Quantized):
            codes = value.codes
            counts = torch.unique(codes, return_counts=True)[1].double()
            entropy = float(-(counts / codes.numel() * (counts / codes.numel()).log2()).sum())
            shape, bits, used, histogram, per_code, floats = rows[name]
            assert shape == "x".join(map(str, codes.shape))
            assert (bits, used) == (str(value.bits), f"{codes.min()}..{codes.max()}")
            assert histogram
            assert set(histogram) <= set(" ▁▂▃▄▅▆▇█")
            assert float(per_code) == pytest.approx(entropy, abs=5e-4)
            assert int(floats.replace(",", "")) >= 2 * len(codes)
        else:
            assert rows[name][1] == f"fp{8 * value.element_size()}"
    header = table_of(pgolf("inspect", "model.pgolf", cwd=workshop).stdout, "tensor")
    assert header == {name: [*row[:2], row[-1]] for name, row in rows.items()}
    size = (workshop / "model.pgolf").stat().st_size
    assert f"{size:,} bytes" in text
    assert artifact.recipe.digest()[:16] in text
    assert artifact.tokenizer_digest[:16] in text


def test_inspect_says_how_the_artifact_was_made(workshop: Path) -> None:
    text, found = (pgolf("inspect", "model.pgolf", *more, cwd=workshop).stdout for more in ((), ("--json",)))
    origin = json.loads(found)["origin"]
    assert origin == read_artifact(workshop / "model.pgolf").origin
    assert f"│ pgolf {origin['pgolf']}" in text and f"│ {origin['scheme']}" in text


def test_inspect_as_json(workshop: Path) -> None:
    found = pgolf_json("inspect", "model.pgolf", "--codes", cwd=workshop)
    assert found["file_bytes"] == (workshop / "model.pgolf").stat().st_size
    assert found["file_bytes"] == found["header_bytes"] + sum(s["bytes"] for s in found["sections"].values())
    assert found["bits_per_weight"] == pytest.approx(8 * found["file_bytes"] / found["weights"])
    names = [tensor["name"] for tensor in found["tensors"] if not tensor["correction"]]
    assert names == list(read_artifact(workshop / "model.pgolf").stored)
    total = sum(group["code_bytes"] + group["float_bytes"] for group in found["groups"].values())
    assert total + found["header_bytes"] == pytest.approx(found["file_bytes"])


def test_inspect_draws(workshop: Path, tmp_path: Path) -> None:
    pgolf("inspect", "model.pgolf", "--picture", tmp_path / "new" / "codes.png", cwd=workshop)
    assert (tmp_path / "new" / "codes.png").read_bytes().startswith(b"\x89PNG")


def test_pack_compares_the_coders(workshop: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.pgolf"
    command = ("pack", "run", *QUICK, "--set", "compress.codec=range", "--out", out, "--compare")
    report = pgolf_json(*command, cwd=workshop)
    assert [row["coder"] for row in report["coders"]] == CODERS
    sizes = {row["coder"]: row["bytes"] for row in report["coders"]}
    # The artifact that was written is the last row.
    assert sizes["range coder"] == report["model_bytes"] == out.stat().st_size
    assert sizes["range coder"] < sizes["torch.save + zstd-22"]
    content = out.read_bytes()
    text = pgolf(*command, cwd=workshop).stdout
    assert out.read_bytes() == content
    rows = {name.split(" (")[0]: cells for name, cells in table_of(text, "coder").items()}
    for name in CODERS:
        if sizes[name] is not None:
            assert rows[name][0] == f"{sizes[name]:,}"
            assert rows[name][1] == f"{100 * sizes[name] / sizes['torch.save + zstd-22']:.2f} %"
    for words in ("artifact", "total"):
        assert words in text
    assert "coders" not in pgolf_json(*command[:-1], cwd=workshop)


def test_a_coder_that_is_not_installed(
    workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "brotli", None)
    text = pgolf("pack", "run", *QUICK, "--out", tmp_path / "m.pgolf", "--compare", cwd=workshop).stdout
    row = next(cells for name, cells in table_of(text, "coder").items() if "brotli" in name)
    assert row == ["-"] * 4
    assert "pip install brotli" in text


def test_bench_coders_takes_any_model(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {"encoder.weight": torch.randn(128, 100, generator=generator), "bias": torch.ones(128)}
    safetensors.torch.save_file(weights, tmp_path / "foreign.safetensors")
    command = ("bench", "coders", "foreign.safetensors", "--bits", "4", "--out", "coders.json")
    result = pgolf_json(*command, cwd=tmp_path)
    assert json.loads((tmp_path / "coders.json").read_text()) == result
    assert [row["coder"] for row in result["coders"]] == CODERS
    assert result["weights"] == 128 * 100 + 128
    sizes = {row["coder"]: row["bytes"] for row in result["coders"]}
    # Codes of 4 bits cost at most half a byte each; the steps and the bias are 512 bytes.
    assert 128 * 100 / 4 < sizes["order-0 entropy"] < 128 * 100 / 2 + 512
    text = pgolf(*command, cwd=tmp_path).stdout
    rows = {name.split(" (")[0]: cells for name, cells in table_of(text, "coder").items()}
    assert rows["torch.save + zstd-22"][1] == "100.00 %"
    assert rows["order-0 entropy"] == [
        f"{sizes['order-0 entropy']:,}",
        f"{100 * sizes['order-0 entropy'] / sizes['torch.save + zstd-22']:.2f} %",
        "-",
        "-",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("inspect", "missing.pgolf"), ["missing.pgolf", "cannot be read"]),
        (("inspect", "train.txt"), ["train.txt", "not a pgolf artifact"]),
        (("inspect", "run/model.safetensors"), ["run/model.safetensors", "holds weights", "pgolf pack"]),
        (("inspect", "run"), ["run", "folder", "pgolf pack"]),
        (("inspect", "model.pgolf", "--picture", "train.txt/codes.png"), ["codes.png"]),
        (("pack", "run", "--out", "small.pgolf", "--cap", "100", "--compare"), ["100", "smallest"]),
        (("bench", "coders", "missing.safetensors"), ["missing.safetensors", "no such file"]),
        (("bench", "coders", "train.txt"), ["train.txt", "safetensors"]),
        (("bench", "coders", "model.pgolf"), ["model.pgolf", "safetensors"]),
        (("bench", "coders", "run/model.safetensors", "--bits", "9"), ["--bits", "8"]),
        (("bench", "coders"), ["file"]),
        (("bench", "speed"), ["speed"]),
    ],
)
def test_one_line_and_nothing_written(workshop: Path, arguments: tuple[str, ...], words: list[str]) -> None:
    before = sorted(path.name for path in workshop.iterdir())
    line = fails(*arguments, cwd=workshop)
    assert all(word in line for word in words), line
    assert sorted(path.name for path in workshop.iterdir()) == before


def test_an_artifact_of_another_format(workshop: Path, tmp_path: Path) -> None:
    content = bytearray((workshop / "model.pgolf").read_bytes())
    content[7] = 1
    (tmp_path / "old.pgolf").write_bytes(content)
    assert "format" in fails("inspect", tmp_path / "old.pgolf")


@pytest.mark.parametrize("command", ["inspect", "bench", "bench coders"])
def test_help_has_examples(command: str) -> None:
    text = pgolf(*command.split(), "--help").stdout
    assert f"pgolf {command}" in text
    assert "Examples:" in text


def test_what_an_artifacts_author_wrote_is_printed_as_it_is(tmp_path: Path) -> None:
    value = Quantized(torch.ones(3, 4, dtype=torch.int8), torch.ones(3).half(), 6)
    origin = {
        "scheme": "\x1b[2J[/bold]\ud800",
        "calibration": {"tokens": "many", "source": "text"},
        "memory": 1,
    }
    content = encode_artifact({"a[/red]\x1b[31m\n": value}, load_recipe("tiny"), "", "range", 1, origin)
    (tmp_path / "odd[1].pgolf").write_bytes(content)
    text = pgolf("inspect", "odd[1].pgolf", "--picture", "codes.png", cwd=tmp_path).stdout
    assert "\x1b" not in text
    for words in ("odd[1].pgolf", "a[/red]�[31m�", "�[2J[/bold]�"):
        assert words in text
    # Twelve equal codes: no entropy, one block.
    assert table_of(text, "tensor")["a[/red]�[31m�"] == ["3x4", "6", "1..1", "█", "0.000", "6"]


@pytest.mark.parametrize(("width", "shown"), [(80, False), (140, True)])
def test_a_narrow_terminal_shows_names_rather_than_histograms(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, width: int, shown: bool
) -> None:
    console = Console(force_terminal=True, color_system=None, width=width)
    monkeypatch.setattr("pgolf.cli.tables.stdout", console)
    text = pgolf("inspect", "model.pgolf", "--codes", cwd=workshop).stdout
    assert ("█" in text) == shown
    assert "bigram.table.weight" in text
