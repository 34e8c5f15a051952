"""The artifact file: exact round trips, and no damaged or hostile file is ever believed."""

from __future__ import annotations

import copy
import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pgolf.compress.coders import CODERS, Kind
from pgolf.compress.container import MAGIC, _digest, decode_artifact, encode_artifact, read_artifact
from pgolf.compress.scheme import Stored
from pgolf.compress.stored import Quantized, code_range
from pgolf.errors import PgolfError
from pgolf.recipe.recipe import load_recipe

RECIPE = load_recipe("tiny")
CODER_NAMES = st.sampled_from(sorted(CODERS))
PREFIX = 28


def quantized(generator: np.random.RandomState, rows: int, columns: int, bits: int) -> Quantized:
    low, high = code_range(bits)
    values = np.clip(np.rint(generator.normal(0, high / 2, (rows, columns))), low, high)
    return Quantized(torch.tensor(values, dtype=torch.int8), half(generator.rand(rows)), bits)


def half(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float16)


def stored(seed: int = 0) -> dict[str, Stored]:
    """Tensors of every form that a file can hold."""
    generator = np.random.RandomState(seed)

    def codes(rows: int, columns: int, bits: int) -> Quantized:
        return quantized(generator, rows, columns, bits)

    return {
        "cores.0.mlp.up.weight": codes(5, 7, 5),
        "smear.gate": half(generator.normal(size=9)),
        "bigram.scale": torch.tensor(0.25, dtype=torch.float32),
        "token_embedding.weight": codes(6, 4, 8),
        **{f"width.{bits}": codes(3, 10, bits) for bits in range(2, 9)},
        "columns": codes(5, 8, 6)._replace(columns=half(generator.rand(8))),
        "correction": codes(7, 6, 4)._replace(correction=(codes(2, 7, 8), codes(2, 6, 8))),
        "both": codes(4, 9, 3)._replace(
            columns=half(generator.rand(9)), correction=(codes(3, 4, 8), codes(3, 9, 8))
        ),
        "cube": torch.tensor(generator.normal(size=(2, 3, 2)), dtype=torch.float32),
        "empty": torch.zeros(0, 3, dtype=torch.float32),
        "no.rows": codes(0, 3, 6),
        "no.columns": codes(3, 0, 6),
    }


def same(first: Stored | None, second: Stored | None) -> bool:
    """Equal to the last bit."""
    if first is None or second is None:
        return first is second
    if isinstance(first, Quantized) and isinstance(second, Quantized):
        pairs = [(first.codes, second.codes), (first.scale, second.scale), (first.columns, second.columns)]
        pairs += list(zip(first.correction or (None,), second.correction or (None,), strict=True))
        return first.bits == second.bits and all(same(a, b) for a, b in pairs)
    assert isinstance(first, Tensor)
    assert isinstance(second, Tensor)
    return (first.dtype, first.shape) == (
        second.dtype,
        second.shape,
    ) and first.numpy().tobytes() == second.numpy().tobytes()


def same_all(first: dict[str, Stored], second: dict[str, Stored]) -> bool:
    return list(first) == list(second) and all(same(first[name], second[name]) for name in first)


WHOLE = {coder: encode_artifact(stored(), RECIPE, "abc", coder, 1, {"scheme": "test"}) for coder in CODERS}


def parts(content: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """Header and sections of an artifact."""
    end = PREFIX + int.from_bytes(content[8:12], "little")
    header = json.loads(zstandard.ZstdDecompressor().decompress(content[PREFIX:end], max_output_size=1 << 20))
    middle = end + header["sections"][0][0]
    return header, [content[end:middle], content[middle:]]


def forged(header: Any, sections: list[bytes]) -> bytes:
    """A file whose header, whatever it says, has the right checksum: what a hostile writer would make."""
    text = zstandard.ZstdCompressor().compress(
        header if isinstance(header, bytes) else json.dumps(header).encode()
    )
    return MAGIC + len(text).to_bytes(4, "little") + _digest(text) + text + b"".join(sections)


def with_sections(
    header: dict[str, Any], sections: list[bytes], sizes: list[int], digests: list[bytes]
) -> bytes:
    """A file whose sections are as its header says."""
    rows = [
        [len(part), size, _digest(part).hex(), digest.hex()]
        for part, size, digest in zip(sections, sizes, digests, strict=True)
    ]
    return forged(header | {"sections": rows}, sections)


def refusal(content: bytes) -> str:
    """What the reader says against a file."""
    with pytest.raises(PgolfError, match=r"^(recipe )?x: ") as caught:
        decode_artifact(content, "x")
    return str(caught.value)


@pytest.mark.parametrize(
    ("coder", "level"), [(name, level) for name in CODERS for level in {1, CODERS[name].highest_level}]
)
def test_round_trip(tmp_path: Path, coder: str, level: int) -> None:
    content = encode_artifact(
        stored(), RECIPE, "abc", coder, level, {"scheme": "gptq", "steps": [1, 2.5, None]}
    )
    (tmp_path / "a.pgolf").write_bytes(content)
    artifact = read_artifact(tmp_path / "a.pgolf")
    assert artifact.recipe == RECIPE
    assert artifact.tokenizer_digest == "abc"
    assert artifact.origin == {"scheme": "gptq", "steps": [1, 2.5, None]}
    assert artifact.coder == coder
    assert same_all(artifact.stored, stored())
    assert [section.name for section in artifact.sections] == ["codes", "floats"]
    assert artifact.header_bytes + sum(section.size for section in artifact.sections) == len(content)
    assert encode_artifact(stored(), RECIPE, "abc", coder, level, artifact.origin) == content


@pytest.mark.parametrize("memory", [b"", b"what it begins with"])
def test_a_tokenizer_is_carried_and_checked(memory: bytes) -> None:
    model = b"a packed SentencePiece model"
    carried = encode_artifact(stored(), RECIPE, "abc", "range", 1, memory=memory, tokenizer=model)
    artifact = decode_artifact(carried, "x")
    assert (artifact.tokenizer, artifact.memory) == (model, memory)
    assert same_all(artifact.stored, stored())
    assert [part.name for part in artifact.sections[2:]] == ["memory"] * bool(memory) + ["tokenizer"]
    assert "section tokenizer is damaged" in refusal(carried[:-1] + b"\0")
    header, sections = parts(carried)
    for place, value, reason in (
        (1, 1 << 40, "sizes do not fit"),
        (1, -1, "sizes do not fit"),
        (4, "code", "sizes do not fit"),
        (4, None, "sizes do not fit"),
        (4, [1], "sizes do not fit"),
    ):
        changed = copy.deepcopy(header)
        changed["sections"][-1][place] = value
        assert reason in refusal(forged(changed, sections))
    doubled = header | {"sections": [*header["sections"], header["sections"][-1]]}
    assert "sizes do not fit" in refusal(forged(doubled, [*sections, sections[-1]]))


def dense(value: Stored) -> np.ndarray:
    """What a stored tensor stands for, in float64."""
    if isinstance(value, Tensor):
        return value.double().numpy()
    found = value.codes.double().numpy() * value.scale.double().numpy()[:, None]
    if value.columns is not None:
        found = found * value.columns.double().numpy()
    if value.correction is not None:
        left, right = map(dense, value.correction)
        found = found + left.T @ right
    return found


@pytest.mark.parametrize("coder", CODERS)
def test_dense_tensors_are_what_was_stored(coder: str) -> None:
    artifact = decode_artifact(WHOLE[coder], "x")
    assert list(artifact.state) == list(stored())
    for name, value in stored().items():
        found = artifact.state[name]
        assert found.dtype == torch.float32
        assert np.allclose(found.numpy(), dense(value), rtol=1e-5, atol=1e-4)
        if isinstance(value, Tensor):
            assert torch.equal(found, value.float())
        else:
            assert torch.equal(found, value.dequantize())


def test_nothing_and_one_number_are_artifacts_too() -> None:
    for tensors in ({}, {"a": torch.tensor(1.5)}, {"a": torch.zeros(0, dtype=torch.float16)}):
        for coder in CODERS:
            assert same_all(
                decode_artifact(encode_artifact(tensors, RECIPE, "", coder, 1), "x").stored, tensors
            )


@given(
    seed=st.integers(0, 1 << 30),
    shape=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    bits=st.integers(2, 8),
    columns=st.booleans(),
    rank=st.integers(0, 4),
    trellis=st.booleans(),
    coder=CODER_NAMES,
)
def test_any_matrix_comes_back(
    seed: int, shape: tuple[int, int], bits: int, columns: bool, rank: int, trellis: bool, coder: str
) -> None:
    generator = np.random.RandomState(seed)
    matrix = quantized(generator, *shape, bits)._replace(trellis=trellis)
    if columns:
        matrix = matrix._replace(columns=half(generator.rand(shape[1])))
    if rank:
        sides = [quantized(generator, rank, side, 8) for side in shape]
        matrix = matrix._replace(correction=(sides[0], sides[1]))
    content = encode_artifact({"a": matrix}, RECIPE, "", coder, 1)
    assert same(decode_artifact(content, "x").stored["a"], matrix)


@given(coder=CODER_NAMES, position=st.integers(0, 1 << 20), value=st.integers(1, 255))
def test_every_changed_byte_is_noticed(coder: str, position: int, value: int) -> None:
    damaged = bytearray(WHOLE[coder])
    damaged[position % len(damaged)] ^= value
    assert refusal(bytes(damaged))


@given(coder=CODER_NAMES, start=st.integers(0, 2500), end=st.integers(0, 2500), extra=st.binary(max_size=20))
def test_cut_and_lengthened_files_are_noticed(coder: str, start: int, end: int, extra: bytes) -> None:
    changed = WHOLE[coder][:start] + extra + WHOLE[coder][end:]
    if changed != WHOLE[coder]:
        assert refusal(changed)


@pytest.mark.parametrize("coder", CODERS)
def test_every_length_but_the_right_one_is_noticed(coder: str) -> None:
    for length in range(len(WHOLE[coder])):
        assert refusal(WHOLE[coder][:length])
    assert "sizes do not fit" in refusal(WHOLE[coder] + b"\0")


@given(noise=st.binary(max_size=300))
def test_noise_is_no_artifact(noise: bytes) -> None:
    for content in (noise, MAGIC + noise, forged(noise, [])):
        assert refusal(content)


def test_another_version_and_missing_files(tmp_path: Path) -> None:
    assert "not a pgolf artifact" in refusal(b"PK\x03\x04" + WHOLE["range"][4:])
    for version in (b"\x01", b"\x02", b"\x63"):
        assert "does not know" in refusal(MAGIC[:-1] + version + WHOLE["range"][8:])
    with pytest.raises(PgolfError, match="cannot be read"):
        read_artifact(tmp_path / "missing.pgolf")
    with pytest.raises(PgolfError, match="cannot be read"):
        read_artifact(tmp_path)


EMPTY = [[0, 0, _digest(b"").hex(), _digest(b"").hex()]] * 2
INFINITE = float("inf")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tensors": [["a", [1 << 40, 1 << 40], 6]]}, "shape of tensor 'a'"),
        ({"tensors": [["a", [-4, 4], "f4"]]}, "shape of tensor 'a'"),
        ({"tensors": [["a", [0, 1 << 63], "f4"]], "sections": EMPTY}, "shape"),
        ({"tensors": [["a", [0, 1 << 30, 1 << 30, 1 << 30], "f4"]], "sections": EMPTY}, "shape"),
        ({"tensors": [["a", [1 << 14, 1 << 15], 6]]}, "shape"),
        ({"tensors": [["a", [0] * 70, "f4"]], "sections": EMPTY}, "shape"),
        ({"tensors": [["a", [INFINITE], "f4"]]}, "shape"),
        ({"tensors": [["a", [True], "f4"]]}, "shape"),
        ({"tensors": [["a", [2.0], "f4"]]}, "shape"),
        ({"tensors": [["a", "12", "f4"]]}, "shape"),
        ({"tensors": [["a", [4], 6]]}, "tensor 'a'"),
        ({"tensors": [["a", [2, 2, 2], [6, 0, 0]]]}, "tensor 'a'"),
        ({"tensors": [["a", [4, 4], 99]]}, "tensor 'a'"),
        ({"tensors": [["a", [4, 4], 1]]}, "tensor 'a'"),
        ({"tensors": [["a", [4, 4], True]]}, "tensor 'a'"),
        ({"tensors": [["a", [4, 4], 6.0]]}, "tensor 'a'"),
        ({"tensors": [["a", [4, 4], None]]}, "tensor 'a'"),
        ({"tensors": [["a", [4, 4], ["f4"]]]}, "tensor 'a'"),
        ({"tensors": [["a", [4, 4], "f8"]]}, "tensor 'a'"),
        ({"tensors": [["a", [4, 4], [6, 2, 0]]]}, "tensor 'a'"),
        ({"tensors": [["a", [4, 4], [6, -1, 0]]]}, "tensor 'a'"),
        ({"tensors": [["a", [4, 4], [6, 0, -1]]]}, "tensor 'a'"),
        ({"tensors": [["a", [4, 4], [6, 0, 1025]]]}, "tensor 'a'"),
        ({"tensors": [["a", [4, 4], [6, 0, 1 << 70]]]}, "tensor 'a'"),
        ({"tensors": [["a", [4, 4], [6, 0]]]}, "tensor 'a'"),
        ({"tensors": [["a", [4, 4], [6, True, 0]]]}, "tensor 'a'"),
        ({"tensors": [["a", [4, 4], {"bits": 6}]]}, "tensor 'a'"),
        ({"tensors": [["a", [1], "f4"], ["a", [1], "f4"]]}, "tensor 'a'"),
        ({"tensors": [["a"]]}, "damaged header"),
        ({"tensors": None}, "damaged header"),
        ({"tensors": 7}, "damaged header"),
        ({"tensors": [["a", 7, "f4"]]}, "damaged header"),
        ({"tensors": [], "sections": [[INFINITE, 0, "", ""], [0, 0, "", ""]]}, "damaged header"),
        ({"sections": [["x", 1, "zz", ""], [1, 1, "", ""]]}, "damaged header"),
        ({"sections": [[1, 1, 5, ""], [1, 1, "", ""]]}, "damaged header"),
        ({"sections": [[1, 1, ""]]}, "damaged header"),
        ({"sections": []}, "sizes do not fit"),
        ({"sections": EMPTY}, "sizes do not fit"),
        ({"sections": [*EMPTY, *EMPTY]}, "sizes do not fit"),
        ({"tensors": []}, "sizes do not fit"),
        ({"codec": "pickle"}, "coder 'pickle'"),
        ({"codec": ["none"]}, "which this version of pgolf does not know"),
        ({"recipe": {"model": {"width": "wide"}}}, "width"),
        ({"recipe": {"modle": {}}}, "modle"),
        ({"recipe": [[1, 2]]}, "recipe x: "),
        ({"recipe": 7}, "damaged header"),
        ({"origin": 7}, "damaged header"),
        ({"digest": "0" * 64}, "does not match the recipe's digest"),
        ({"digest": None}, "does not match the recipe's digest"),
        ({"recipe": {}}, "does not match the recipe's digest"),
    ],
)
def test_hostile_headers_are_refused(change: dict[str, object], reason: str) -> None:
    header, sections = parts(WHOLE["none"])
    assert reason in refusal(forged(header | change, sections))


@pytest.mark.parametrize("key", ["recipe", "digest", "tokenizer", "origin", "codec", "sections", "tensors"])
def test_every_key_of_the_header_is_needed(key: str) -> None:
    header, sections = parts(WHOLE["zstd"])
    del header[key]
    assert "damaged header" in refusal(forged(header, sections))


@pytest.mark.parametrize(
    "text", [b"", b"null", b"[1]", b'"a"', b"{", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000]
)
def test_texts_that_are_no_header_are_refused(text: bytes) -> None:
    assert "damaged header" in refusal(forged(text, []))


def test_negative_and_swapped_sizes_are_refused() -> None:
    header, sections = parts(WHOLE["none"])
    for shift in (-len(sections[0]) - 1, -1, 1, len(sections[1]), len(sections[1]) + 1):
        changed = copy.deepcopy(header)
        changed["sections"][0][0] += shift
        changed["sections"][1][0] -= shift
        assert "sizes do not fit" in refusal(forged(changed, sections)) or "section" in refusal(
            forged(changed, sections)
        )
    changed = copy.deepcopy(header)
    changed["sections"][0][1] += 1
    changed["sections"][1][1] -= 1
    assert "sizes do not fit" in refusal(forged(changed, sections))


def with_arrays(
    tensors: list[list[Any]], coder: str, codes: list[tuple[Kind, Any]], floats: list[tuple[Kind, Any]]
) -> bytes:
    """A file of these arrays, with every size and checksum right."""
    header, _ = parts(WHOLE[coder])
    raws = [b"".join(np.asarray(array).tobytes() for _, array in section) for section in (codes, floats)]
    sections = [CODERS[coder].encode(section, 1) for section in (codes, floats)]
    return with_sections(
        header | {"tensors": tensors}, sections, [len(raw) for raw in raws], [_digest(raw) for raw in raws]
    )


@pytest.mark.parametrize("coder", CODERS)
def test_arrays_forged_without_a_flaw_are_read(coder: str) -> None:
    codes = [(Kind((2, 3), "i1", -8, 7), np.array([[1, -8, 7], [0, 2, 3]], dtype=np.int8))]
    floats = [(Kind((2,), "f2"), np.array([0.5, 0.0], dtype="<f2"))]
    state = decode_artifact(with_arrays([["a", [2, 3], 4]], coder, codes, floats), "x").state
    assert torch.equal(state["a"], torch.tensor([[0.5, -4, 3.5], [0, 0, 0]]))


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("value", [float("nan"), INFINITE, -INFINITE, -1.0, -6e-8])
@pytest.mark.parametrize("place", ["scale", "columns", "left", "right"])
def test_steps_that_are_no_steps_are_refused(coder: str, value: float, place: str) -> None:
    matrix = stored()["both"]
    assert isinstance(matrix, Quantized)
    assert matrix.columns is not None
    assert matrix.correction is not None
    left, right = matrix.correction
    part = {"scale": matrix.scale, "columns": matrix.columns, "left": left.scale, "right": right.scale}[place]
    part[1] = value
    message = refusal(encode_artifact({"whole": torch.zeros(3), "both": matrix}, RECIPE, "", coder, 1))
    assert "tensor both holds a step size that is negative or not finite" in message


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("value", [float("nan"), INFINITE, -INFINITE])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_kept_values_that_are_not_finite_are_refused(coder: str, value: float, dtype: torch.dtype) -> None:
    kept = torch.tensor([0.0, 1.0, value], dtype=dtype)
    message = refusal(encode_artifact(stored() | {"kept": kept}, RECIPE, "", coder, 1))
    assert "tensor kept holds a value that is not finite" in message


@pytest.mark.parametrize("coder", sorted(set(CODERS) - {"range"}))
@pytest.mark.parametrize(("bits", "code"), [(2, 2), (2, -3), (5, 16), (5, -17), (7, 127), (8, -128)])
def test_codes_outside_their_width_are_refused(coder: str, bits: int, code: int) -> None:
    matrix = quantized(np.random.RandomState(0), 4, 5, bits)
    matrix.codes[2, 3] = code
    assert f"tensor a holds a code outside its {bits} bits" in refusal(
        encode_artifact({"a": matrix}, RECIPE, "", coder, 1)
    )
    side = quantized(np.random.RandomState(0), 2, 4, 8)
    side.codes[1, 1] = -128
    whole = quantized(np.random.RandomState(0), 4, 4, 5)._replace(correction=(side, side))
    assert "tensor b holds a code outside its 8 bits" in refusal(
        encode_artifact({"b": whole}, RECIPE, "", coder, 1)
    )


@given(
    coder=CODER_NAMES, which=st.integers(0, 1), position=st.integers(0, 1 << 20), value=st.integers(1, 255)
)
def test_changed_sections_with_repaired_checksums_are_still_noticed(
    coder: str, which: int, position: int, value: int
) -> None:
    header, sections = parts(WHOLE[coder])
    changed = bytearray(sections[which])
    changed[position % len(changed)] ^= value
    sections[which] = bytes(changed)
    header["sections"][which][2] = _digest(sections[which]).hex()
    try:
        # A byte that means nothing to a compressor may change: what it decodes to is the same.
        assert same_all(decode_artifact(forged(header, sections), "x").stored, stored())
    except PgolfError as error:
        assert str(error).startswith(f"x: section {('codes', 'floats')[which]} ")


def test_a_wrong_checksum_of_the_decoded_bytes_is_noticed() -> None:
    for coder in CODERS:
        header, sections = parts(WHOLE[coder])
        header["sections"][1][3] = "00" * 16
        assert "section floats decodes to something else" in refusal(forged(header, sections))
        header["sections"][0][2] = "00" * 16
        assert "section codes is damaged" in refusal(forged(header, sections))


@pytest.mark.parametrize("coder", CODERS)
def test_sections_of_another_coder_are_refused(coder: str) -> None:
    header, sections = parts(WHOLE[coder])
    for other in set(CODERS) - {coder}:
        assert "section codes" in refusal(forged(header | {"codec": other}, sections))


def peak_of(call: Callable[[], object]) -> tuple[int, float]:
    """Bytes that Python and numpy held at most, and seconds of processor time."""
    tracemalloc.start()
    started = time.process_time()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, time.process_time() - started


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize(
    "tensors",
    [
        [["a", [1 << 14, 1 << 14], 6]],
        [["a", [1 << 28], "f4"]],
        [["a", [4096, 4096], 2]],
        [["a", [0, 1 << 27], [6, 1, 0]]],
        [["a", [2048, 2048], [6, 0, 1024]]],
        [["a", [100_000, 1], [6, 0, 1024]]],
        [[str(index), [1000, 1000], 6] for index in range(300)],
        [[str(index), [1, 1], 2] for index in range(5000)],
    ],
)
def test_files_that_claim_more_than_they_can_hold_are_refused_at_once(
    tensors: list[list[Any]], coder: str
) -> None:
    header, _ = parts(WHOLE[coder])
    sizes, sections = [0, 0], [b"", b""]
    for _, shape, kind in tensors:
        bits, columns, rank = kind if isinstance(kind, list) else [kind, 0, 0]
        sizes[0] += 0 if bits == "f4" else shape[0] * shape[1] + rank * sum(shape)
        sizes[1] += 4 * shape[0] if bits == "f4" else 2 * (shape[0] + columns * shape[1] + 2 * rank)
    content = with_sections(header | {"tensors": tensors}, sections, sizes, [b"", b""])

    def read() -> None:
        assert "claims more" in refusal(content)

    peak, seconds = peak_of(read)
    assert peak < 8 << 20
    assert seconds < 1


def test_a_header_that_unpacks_to_too_much_is_refused_unread() -> None:
    bomb = forged(b" " * (256 << 20), [])

    def read() -> None:
        assert "damaged header" in refusal(bomb)

    peak, seconds = peak_of(read)
    assert peak < 8 << 20
    assert seconds < 1


@pytest.mark.parametrize("coder", ["zstd", "lzma"])
def test_a_section_that_unpacks_to_too_much_stops_early(coder: str) -> None:
    header, sections = parts(WHOLE[coder])
    bomb = CODERS[coder].encode([(Kind((16 << 20,), "i1"), np.zeros(16 << 20, dtype=np.int8))], 1)
    sizes = [row[1] for row in header["sections"]]
    content = with_sections(header, [bomb, sections[1]], sizes, [b"", b""])

    def read() -> None:
        assert "section codes cannot be decoded" in refusal(content)

    peak, seconds = peak_of(read)
    assert peak < 8 << 20
    assert seconds < 1


def test_pruned_and_empty_models_are_no_false_claims() -> None:
    generator = np.random.RandomState(0)
    sparse = torch.tensor(generator.rand(1500, 2000) < 0.002, dtype=torch.int8)
    tensors: dict[str, Stored] = {
        "sparse": Quantized(sparse, half(np.ones(1500)), 6),
        "zeros": Quantized(torch.zeros(1000, 1000, dtype=torch.int8), half(np.zeros(1000)), 6),
    }
    for coder in ("range", "zstd"):
        assert same_all(decode_artifact(encode_artifact(tensors, RECIPE, "", coder, 1), "x").stored, tensors)
