"""Reading documents: every format, and every way a file can be bad."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import zstandard

from pgolf.data.readers import check_sources, read_documents
from pgolf.errors import PgolfError

TEXTS = ["One line.", "Two\nlines, Zürich 🙂.", "Last."]


def _file(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def _json_lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text, "id": 1}) + "\n" for text in texts).encode()


def _error(path: Path) -> str:
    with pytest.raises(PgolfError) as caught:
        list(read_documents(path))
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message


def test_txt_documents_are_separated_by_blank_lines(tmp_path: Path) -> None:
    path = _file(tmp_path, "a.txt", ("\n\n" + "\n \t\n\n".join(TEXTS) + "\n").encode())
    assert list(read_documents(path)) == TEXTS


def test_txt_as_one_document_keeps_the_blank_lines(tmp_path: Path) -> None:
    path = _file(tmp_path, "a.txt", "\n\n".join(TEXTS).encode() + b"\n")
    assert list(read_documents(path, one_document=True)) == ["\n\n".join(TEXTS)]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = _file(tmp_path, "a.txt", b"\xef\xbb\xbfHello.\n")
    assert list(read_documents(path)) == ["Hello."]


def test_jsonl_skips_blank_lines_and_yields_empty_texts_as_empty(tmp_path: Path) -> None:
    path = _file(tmp_path, "a.jsonl", _json_lines([TEXTS[0], " \n"]) + b"\n" + _json_lines(TEXTS[1:])[:-1])
    assert list(read_documents(path)) == [TEXTS[0], "", *TEXTS[1:]]


@pytest.mark.parametrize("frames", [1, 3])
def test_zstd_is_read_over_block_and_frame_borders(tmp_path: Path, frames: int) -> None:
    # Hard to compress, so that the file has more than one block of input.
    texts = [f"{number * 7919 % 1000003:x} {number:x}" for number in range(40_000)]
    parts = [_json_lines(texts[index::frames]) for index in range(frames)]
    compressed = b"".join(zstandard.compress(part) for part in parts)
    assert len(compressed) > 2 << 16
    path = _file(tmp_path, "a.jsonl.zst", compressed)
    consumed: list[int] = []
    documents = list(read_documents(path, advance=consumed.append))
    assert documents == [text for index in range(frames) for text in texts[index::frames]]
    assert sum(consumed) == len(compressed)


def test_parquet_yields_its_text_column(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = [f"Document {number}." for number in range(1000)]
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"id": list(range(1000)), "text": texts}), path, row_group_size=300)
    consumed: list[int] = []
    assert list(read_documents(path, advance=consumed.append)) == texts
    assert sum(consumed) == path.stat().st_size


def test_bad_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"body": ["x"]}), path)
    assert 'no string column "text" (columns: body)' in _error(path)
    parquet.write_table(arrow.table({"text": ["x", None]}), path)
    assert 'row 1: "text" is NoneType' in _error(path)
    bad = arrow.Array.from_buffers(
        arrow.string(), 1, [None, arrow.py_buffer(b"\0\0\0\0\2\0\0\0"), arrow.py_buffer(b"\xff\xfe")]
    )
    parquet.write_table(arrow.table({"text": bad}), path)
    assert "not UTF-8" in _error(path)
    path.write_bytes(b"PAR1 is not enough")
    assert "not Parquet" in _error(path)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"", "holds no text"),
        ("a.txt", b" \n\n\t\n", "holds no text"),
        ("a.jsonl", b'{"text": ""}\n{"text": "  "}\n', "holds no text"),
        ("a.txt", b"good\nbad \xff here\n", "line 2 is not UTF-8 (byte 0xff at offset 9 of the text)"),
        ("a.txt", "größe".encode("latin-1"), "line 1 is not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', "line 2 is not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": "b"\n', "line 3 is not valid JSON"),
        ("a.jsonl", b"[" * 100_000, "line 1 is not valid JSON"),
        ("a.jsonl", b'{"text": "a"}\n{"body": "b"}\n', 'line 2 has no field "text"'),
        ("a.jsonl", b'["text"]\n', 'line 1 has no field "text"'),
        ("a.jsonl", b'{"text": 3}\n', 'line 1: "text" is int, not a string'),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "lone surrogate"),
        ("a.jsonl.zst", b'{"text": "a"}\n', "not zstd-compressed"),
        ("a.jsonl.zst", zstandard.compress(b'{"text": "\xe9"}\n'), "line 1 is not UTF-8"),
    ],
)
def test_bad_files_name_the_place(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    assert expected in _error(_file(tmp_path, name, content))


def test_a_truncated_zstd_file_is_noticed(tmp_path: Path) -> None:
    compressed = zstandard.compress(_json_lines([f"{number * 7919 % 1000003:x}" for number in range(20_000)]))
    assert "ends too early" in _error(_file(tmp_path, "a.jsonl.zst", compressed[:-5]))


def test_sources_are_checked_before_any_work(tmp_path: Path) -> None:
    good = _file(tmp_path, "a.txt", b"x")
    check_sources([good])
    with pytest.raises(PgolfError, match=r"b\.csv: unknown kind of file; text must be one of \.txt"):
        check_sources([good, _file(tmp_path, "b.csv", b"x")])
    with pytest.raises(PgolfError, match=r"c\.txt: no such text file"):
        check_sources([good, tmp_path / "c.txt"])
