"""What `pgolf inspect` says of an artifact is what was put into it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pgolf.compress.container import encode_artifact, read_artifact
from pgolf.compress.inspect import ArtifactInfo, group_or_other, inspect_artifact
from pgolf.compress.stored import Quantized, Stored
from pgolf.errors import PgolfError
from pgolf.recipe.recipe import load_recipe
from pgolf.report.histogram import bars, draw_codes, group_rows, summary_rows, tensor_rows
from pgolf.runtime.writing import write_bytes

RECIPE = load_recipe("tiny")
ORIGIN = {"pgolf": "0.1.0", "calibration": {"source": "train", "tokens": 16384}}


def matrix(rows: int, columns: int, bits: int, spread: float, seed: int) -> Quantized:
    generator = torch.Generator().manual_seed(seed)
    high = 127 if bits == 8 else (1 << (bits - 1)) - 1
    codes = (
        (spread * torch.randn(rows, columns, generator=generator)).round().clamp(-high, high).to(torch.int8)
    )
    return Quantized(codes, torch.rand(rows, generator=generator).half(), bits)


UP, DOWN, QUERY = matrix(50, 60, 6, 7, 0), matrix(60, 50, 4, 2, 1), matrix(40, 30, 8, 3, 2)
QUERY = QUERY._replace(
    columns=torch.rand(30).half(), correction=(matrix(2, 40, 8, 40, 3), matrix(2, 30, 8, 40, 4))
)
STORED: dict[str, Stored] = {
    "cores.0.mlp.up.weight": UP,
    "cores.0.mlp.down.weight": DOWN,
    "cores.0.attention.query.weight": QUERY,
    "smear.gate": torch.rand(9).half(),
    "bigram.scale": torch.tensor(0.5),
    "encoder.layer.0[/x]": matrix(10, 20, 3, 1, 5),
}


def entropy(codes: torch.Tensor) -> float:
    """Order-0 entropy in bits, all codes together, by the definition."""
    counts = Counter(codes.flatten().tolist())
    return sum(-count * math.log2(count / counts.total()) for count in counts.values())


def inspected(folder: Path, codec: str = "range", stored: dict[str, Stored] = STORED) -> ArtifactInfo:
    write_bytes(folder / "a.pgolf", encode_artifact(stored, RECIPE, "f00d" * 16, codec, 1, ORIGIN))
    return inspect_artifact(folder / "a.pgolf", codes=True)


@pytest.mark.parametrize("codec", ["range", "zstd", "none"])
def test_sizes_add_up_to_the_file(tmp_path: Path, codec: str) -> None:
    info = inspected(tmp_path, codec)
    size = (tmp_path / "a.pgolf").stat().st_size
    sections = info.artifact.sections
    assert info.file_bytes == size == info.artifact.header_bytes + sum(part.size for part in sections)
    assert (info.to_json()["format"], info.artifact.coder) == (3, codec)
    codes = 3000 + 3000 + 1200 + 2 * 40 + 2 * 30 + 200
    floats = 2 * (50 + 60 + 40 + 30 + 2 + 2 + 9 + 10) + 4
    assert [(section.name, section.raw) for section in sections] == [
        ("codes", codes),
        ("floats", floats),
    ]
    assert codes == info.codes
    assert info.weights == 3000 + 3000 + 1200 + 9 + 1 + 200
    assert info.bits_per_weight == pytest.approx(8 * size / info.weights)
    groups = info.groups()
    assert sum(group.code_bytes for group in groups.values()) == pytest.approx(info.section("codes").size)
    assert sum(group.float_bytes for group in groups.values()) == pytest.approx(info.section("floats").size)
    assert sum(group.weights for group in groups.values()) == info.weights


def test_a_row_per_tensor(tmp_path: Path) -> None:
    info = inspected(tmp_path)
    rows = {tensor.name: tensor for tensor in info.tensors}
    query = "cores.0.attention.query.weight"
    sides = [f"{query}, correction of rows", f"{query}, correction of columns"]
    assert list(rows) == [*list(STORED)[:3], *sides, *list(STORED)[3:]]
    assert QUERY.correction is not None
    for name, value in (
        ("cores.0.mlp.up.weight", UP),
        (query, QUERY),
        *zip(sides, QUERY.correction, strict=True),
    ):
        row = rows[name]
        assert row.shape == tuple(value.codes.shape)
        assert row.bits == value.bits
        assert row.code_min == value.codes.min()
        assert row.code_max == value.codes.max()
        assert row.entropy_bits == pytest.approx(entropy(value.codes))
        assert row.entropy_per_weight == pytest.approx(entropy(value.codes) / value.codes.numel())
        low = -127 if value.bits == 8 else -(1 << (value.bits - 1))
        assert row.counts[value.codes[0, 0] - low] == int((value.codes == value.codes[0, 0]).sum())
        assert sum(row.counts) == value.codes.numel()
    assert rows[query].float_bytes == 2 * (40 + 30)
    assert rows["cores.0.mlp.up.weight"].float_bytes == 2 * 50
    assert (rows["smear.gate"].dtype, rows["smear.gate"].float_bytes) == ("float16", 18)
    assert (rows["bigram.scale"].dtype, rows["bigram.scale"].bits, rows["bigram.scale"].shape) == (
        "float32",
        32,
        (),
    )
    assert rows["smear.gate"].entropy_per_weight is None
    assert rows["smear.gate"].code_min is None
    assert info.entropy_bytes == pytest.approx(sum(row.entropy_bits for row in info.tensors) / 8)


def test_the_header_alone_says_what_no_code_is_needed_for(tmp_path: Path) -> None:
    info = inspected(tmp_path)
    header = inspect_artifact(tmp_path / "a.pgolf")
    unknown = {"counts": (), "code_min": None, "code_max": None, "entropy_bits": 0.0}
    assert header.tensors == tuple(replace(tensor, **unknown) for tensor in info.tensors)
    assert [row[:3] for row in tensor_rows(header)] == [row[:3] for row in tensor_rows(info)]
    assert (header.weights, header.codes, header.file_bytes) == (info.weights, info.codes, info.file_bytes)
    assert "arrays" not in vars(header.artifact)
    found = header.to_json()
    assert (found["entropy_bytes"], found["groups"]) == (None, {})
    assert [label for label, _ in summary_rows(info) if label not in dict(summary_rows(header))] == [
        "order-0 entropy",
        "codes against it",
    ]


def test_groups_share_the_sections_by_their_coded_bytes(tmp_path: Path) -> None:
    info = inspected(tmp_path)
    groups = info.groups()
    assert list(groups) == ["mlp", "attention", "control", "other"]
    assert [group.tensors for group in groups.values()] == [2, 1, 2, 1]
    assert groups["control"].code_bytes == 0
    # What stands before it in the file costs the same without what follows; a coder's end has a few bytes.
    before: dict[str, Stored] = {name: STORED[name] for name in list(STORED)[:2]}
    alone = inspected(tmp_path, stored=before)
    for size, name in ((groups["mlp"].code_bytes, "codes"), (groups["mlp"].float_bytes, "floats")):
        assert size == pytest.approx(alone.section(name).size, abs=8)
    # Steps that are all alike cost next to nothing, however many bytes they have.
    same = UP._replace(scale=torch.full((50,), 0.5).half())
    stored: dict[str, Stored] = {"smear.gate": torch.rand(50).half(), "cores.0.mlp.up.weight": same}
    groups = inspected(tmp_path, stored=stored).groups()
    assert groups["mlp"].float_bytes < 0.3 * groups["control"].float_bytes


def test_a_name_that_no_row_of_the_table_claims_is_other() -> None:
    assert group_or_other("encoder.layer.0.weight") == "other"
    assert group_or_other("token_embedding.weight") == "embedding"


def test_provenance(tmp_path: Path) -> None:
    found = inspected(tmp_path).to_json()
    assert found["recipe"] == {"name": "tiny", "sha256": RECIPE.digest()}
    assert found["tokenizer_sha256"] == "f00d" * 16
    assert found["origin"] == ORIGIN
    assert found["tensors"][0]["name"] == "cores.0.mlp.up.weight"
    assert found["tensors"][0]["entries"] == 3000


def test_tables_say_the_same(tmp_path: Path) -> None:
    info = inspected(tmp_path)
    first, gate = tensor_rows(info)[0], tensor_rows(info)[5]
    codes, per_code = UP.codes, entropy(UP.codes) / 3000
    assert first[:4] == ("cores.0.mlp.up.weight", "50x60", "6", f"{codes.min()}..{codes.max()}")
    assert first[5:] == (f"{per_code:.3f}", "100")
    assert gate == ("smear.gate", "9", "fp16", "-", "", "-", "18")
    assert group_rows(info)[-1][2] == f"{info.weights:,}"
    lines = dict(summary_rows(info))
    size, bound = info.section("codes").size, info.entropy_bytes
    assert bound is not None
    assert lines["codes against it"].split() == [
        f"{size - bound:+,.0f}",
        "bytes",
        f"({100 * (size - bound) / bound:+.2f}",
        "%)",
    ]
    assert f"{8 * info.file_bytes / info.weights:.3f} bits each" in lines["weights"]


def test_nothing_but_kept_or_empty_tensors(tmp_path: Path) -> None:
    stored: dict[str, Stored] = {
        "smear.gate": torch.rand(9).half(),
        "empty": Quantized(torch.zeros(0, 5, dtype=torch.int8), torch.zeros(0).half(), 6),
    }
    info = inspected(tmp_path, stored=stored)
    assert info.entropy_bytes == 0
    assert info.tensors[1].entropy_per_weight is None
    assert tensor_rows(info)[1][3:6] == ("-", "", "-")
    assert summary_rows(info)
    draw_codes(info, tmp_path / "codes.png")


def test_bars() -> None:
    assert bars([0, 1, 4, 8]) == " ▁▄█"
    assert bars([1, 1000]) == "▁█"
    assert bars([5] * 64) == "█" * 16
    # 20 counts in 16 blocks: a block is the mean of its one or two.
    assert bars([8] * 10 + [4] * 10) == "█" * 8 + "▄" * 8
    assert bars([]) == ""
    assert bars([0, 0]) == "  "


def test_the_picture(tmp_path: Path) -> None:
    matplotlib_image = pytest.importorskip("matplotlib.image")
    info = inspected(tmp_path)
    draw_codes(info, tmp_path / "codes.png")
    pixels = matplotlib_image.imread(tmp_path / "codes.png")
    assert pixels.shape[0] > 600
    assert pixels.shape[1] == 1350
    # Bars of codes and of floats in the lower part, in their colours.
    lower = pixels[-300:, :, :3]
    for color in ((0x1F, 0x5F, 0xA8), (0xC2, 0x41, 0x0C)):
        near = abs(lower - torch.tensor(color).numpy() / 255).max(axis=2) < 0.02
        assert near.sum() > 100


def test_a_name_that_looks_like_a_formula_is_drawn_as_it_is(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a$\\frac$.pgolf", encode_artifact(STORED, RECIPE, "", "range", 1))
    draw_codes(inspect_artifact(tmp_path / "a$\\frac$.pgolf", codes=True), tmp_path / "codes.png")
    assert (tmp_path / "codes.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_no_artifact(tmp_path: Path) -> None:
    import safetensors.torch

    (tmp_path / "text.txt").write_text("{ 34567{ words")
    (tmp_path / "run").mkdir()
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "artifact.pgolf").touch()
    safetensors.torch.save_file({"w": torch.ones(3)}, tmp_path / "w.safetensors")
    for name, words in (
        ("missing.pgolf", "cannot be read"),
        ("text.txt", "not a pgolf artifact"),
        ("w.safetensors", "holds weights; pgolf inspect reads artifacts, so pack them first"),
        ("run", "is a folder; pgolf inspect reads artifacts, so pack it first"),
        ("done", "so name one in it: .*artifact.pgolf"),
    ):
        with pytest.raises(PgolfError, match=words) as raised:
            inspect_artifact(tmp_path / name)
        assert str(tmp_path / name) in str(raised.value)


def test_reading_is_that_of_the_reader(tmp_path: Path) -> None:
    inspected(tmp_path)
    content = bytearray((tmp_path / "a.pgolf").read_bytes())
    content[-1] ^= 1
    (tmp_path / "bad.pgolf").write_bytes(content)
    with pytest.raises(PgolfError, match="damaged"):
        inspect_artifact(tmp_path / "bad.pgolf")
    assert read_artifact(tmp_path / "a.pgolf").origin == ORIGIN
