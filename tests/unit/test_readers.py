"""Reading documents: every format, and every way a file can be bad."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pgolf.data.readers import Reading, find_sources, read_documents
from pgolf.errors import PgolfError

PARAGRAPHS = Reading(split="blank-lines")
SKIP = Reading(bad_documents="skip")
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


def test_blank_lines_separate_documents_where_that_is_asked_for(tmp_path: Path) -> None:
    path = _file(tmp_path, "a.txt", ("\n\n" + "\n \t\n\n".join(TEXTS) + "\n").encode())
    assert list(read_documents(path, PARAGRAPHS)) == TEXTS


def test_a_txt_file_is_one_document_and_keeps_its_blank_lines(tmp_path: Path) -> None:
    path = _file(tmp_path, "a.txt", "\n\n".join(TEXTS).encode() + b"\n")
    assert list(read_documents(path)) == ["\n\n".join(TEXTS)]


LINES = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1).filter(
    lambda line: not line.isspace() and not line.startswith("\ufeff")
)
DOCUMENTS = st.lists(st.lists(LINES, min_size=1, max_size=4).map("\n".join), min_size=1, max_size=5)


@given(DOCUMENTS, st.sampled_from(["", ".gz", ".zst"]), st.sampled_from(["\n\n", "\n \n\n"]))
def test_documents_come_back_as_they_were(documents: list[str], ending: str, between: str) -> None:
    compress = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[ending]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = [
            _file(folder, f"{index}.txt{ending}", compress(document.encode()))
            for index, document in enumerate(documents)
        ]
        assert [text for path in find_sources([folder]) for text in read_documents(path)] == documents
        for path, document in zip(files, documents, strict=True):
            assert list(read_documents(path)) == [document]
        together = _file(folder, f"all.txt{ending}", compress(between.join(documents).encode()))
        assert list(read_documents(together, PARAGRAPHS)) == documents
        records = json.dumps([{"text": document} for document in documents])
        array = _file(folder, f"all.json{ending}", compress(records.encode()))
        assert list(read_documents(array)) == documents


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
        ("a.json", b'[{"text": "a"}, {"text": "\xff"}]', 'record 2: "text" is not valid Unicode'),
        ("a.json", b'[{"text": "a"} {"text": "b"}]', "not valid JSON in or after record 2 (a comma"),
        ("a.json", b'[{"text": "a"}, {"text": "b"', "not valid JSON in or after record 2"),
        ("a.json", b'[{"text": "a"}', "a comma or the end of the array is missing"),
        ("a.json", b'[{"text": "a"}] 1', "something follows the array"),
        ("a.json", b'[{"text": "a"}, 12345]', 'record 2 has no field "text": it is int'),
        ("a.json", b'{"data": [{"text": "a"}]}', 'record 1 has no field "text" (it has: data)'),
        ("a.json", b"[" * 100_000, "not valid JSON in or after record 1 (nested too deep"),
        ("a.json", b"[]", "holds no text"),
        ("a.jsonl.gz", b'{"text": "a"}\n', "not gzip-compressed"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n', mtime=0)[:-5], "ends too early"),
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
    assert find_sources([good]) == [good]
    with pytest.raises(PgolfError, match=r"b\.csv: unknown kind of file; text must be one of \.txt"):
        find_sources([good, _file(tmp_path, "b.csv", b"x")])
    with pytest.raises(PgolfError, match=r"c\.txt: no such text file"):
        find_sources([good, tmp_path / "c.txt"])


def test_messages_name_the_options_that_help(tmp_path: Path) -> None:
    bad = _file(tmp_path, "a.jsonl", b'{"body": "x", "meta": {"title": "t", "id": 1}}\n')
    assert (
        'no field "text" (it has: body, meta.title, meta.id); name the one that holds the text with '
        "--text-column" in (_error(bad))
    )
    assert "--bad-documents skip" in _error(bad)
    for options in ({"split": "lines"}, {"bad_documents": "ignore"}, {"text_column": ""}):
        with pytest.raises(PgolfError, match=r"--(split|bad-documents|text-column) "):
            Reading(**options)


def test_names_in_a_hostile_file_do_not_reach_the_terminal_raw(tmp_path: Path) -> None:
    assert "\x1b" not in _error(_file(tmp_path, "a.jsonl", b'{"\\u001b[2J": "x"}\n'))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"record": {"body": "x"}}\n{"record.body": "y", "record": 1}\n'),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"record": {"body": "x"}}\n', mtime=0)
            + gzip.compress(b'"y"\n', mtime=0)
            + b"\0" * 9000,
        ),
        ("a.json", b'\xef\xbb\xbf [ {"record": {"body": "x"}} , "y" ]\n'),
        ("a.json", b'{"record": {"body": "x"}}\n{"record": {"body": "y"}}\n'),
        ("a.json.zst", zstandard.compress(b'["x", "y"]')),
    ],
)
def test_records_of_every_shape(tmp_path: Path, name: str, content: bytes) -> None:
    assert list(read_documents(_file(tmp_path, name, content), Reading(text_column="record.body"))) == [
        "x",
        "y",
    ]


def test_a_json_array_of_any_size_is_read_piece_by_piece(tmp_path: Path) -> None:
    choose = random.Random(0)
    texts = ["\u00e9" * choose.choice([1, 50, 30_000]) + '"\\' + str(number) for number in range(100)]
    records = [{"meta": {"n": 1.5e10}, "text": text} for text in texts]
    path = _file(tmp_path, "a.json", json.dumps(records, ensure_ascii=False, indent=1).encode())
    consumed: list[int] = []
    documents = read_documents(path, advance=consumed.append)
    assert next(documents) == texts[0] and sum(consumed) < path.stat().st_size / 4
    assert list(documents) == texts[1:]
    assert sum(consumed) == path.stat().st_size


@pytest.mark.parametrize(
    ("name", "content", "kept", "reasons"),
    [
        ("a.txt", b"good\n\nbad \xff here\nmore\n\nlast\n", ["good", "last"], {"not UTF-8": 1}),
        (
            "b.jsonl",
            b'"a"\n{"text": null}\n\xff\n{"text": "\\ud800"}\n{\n{"text": 3}\n{"x": 1}\n"b"\n',
            ["a", "b"],
            {
                **{"null": 1, "not UTF-8": 1, "not valid Unicode": 1},
                **{"not valid JSON": 1, "not a string": 1, "no such column": 1},
            },
        ),
        (
            "c.json",
            b'["a", {"text": null}, "\xff", "\\ud800", 3, {"x": 1}, {"text": 3}, "b"]',
            ["a", "b"],
            {"null": 1, "not valid Unicode": 2, "not a string": 1, "no such column": 2},
        ),
    ],
)
def test_bad_documents_are_left_out_and_counted_on_request(
    tmp_path: Path, name: str, content: bytes, kept: list[str], reasons: dict[str, int]
) -> None:
    skipped: Counter[str] = Counter()
    reading = Reading(split="blank-lines", bad_documents="skip")
    assert list(read_documents(_file(tmp_path, name, content), reading, skipped=skipped)) == kept
    assert skipped == reasons


def test_a_txt_file_that_is_not_utf8_is_one_bad_document(tmp_path: Path) -> None:
    skipped: Counter[str] = Counter()
    assert list(read_documents(_file(tmp_path, "a.txt", b"a\n\n\xff\n\n\xfe"), SKIP, skipped=skipped)) == []
    assert skipped == {"not UTF-8": 1}


@pytest.mark.parametrize("window", [27, 28, 31])
def test_zstd_with_a_long_window_is_read_like_any_other(tmp_path: Path, window: int) -> None:
    texts = [f"{number * 7919 % 1000003:x}" for number in range(3000)]
    parameters = zstandard.ZstdCompressionParameters(
        window_log=window, enable_ldm=True, hash_log=12, chain_log=12, ldm_hash_log=12
    )
    writer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    path = _file(tmp_path, "a.jsonl.zst", writer.compress(_json_lines(texts)) + writer.flush())
    assert zstandard.get_frame_parameters(path.read_bytes()).window_size == 1 << window
    assert list(read_documents(path)) == texts


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_small_hostile_zstd_file_takes_little_memory(tmp_path: Path) -> None:
    # A frame of a 2 GiB window in which every block of four bytes stands for 128 KiB.
    block = (1 << 1 | (1 << 17) << 3).to_bytes(3, "little") + b"x"
    frame = b"\x28\xb5\x2f\xfd\x00" + bytes([(31 - 10) << 3]) + block * 16_000
    path = _file(tmp_path, "a.txt.zst", frame)
    # ``ru_maxrss`` would be this process's own where that is larger.
    code = (
        "import re, sys; from pathlib import Path; from pgolf.data.readers import blocks\n"
        "found = blocks(Path(sys.argv[1]), '.zst', lambda consumed: None)\n"
        "print(sum(len(next(found)) for _ in range(2)))\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    size, peak = map(int, done.stdout.split())
    assert size > 200 << 20 and peak < 600 << 10


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_columns_of_every_kind_of_string(tmp_path: Path, ending: str, nested: bool) -> None:
    arrow = pytest.importorskip("pyarrow")
    texts = [*TEXTS, "", *(f"Document {number % 50}." for number in range(700))]
    names = ["string", "large_string", "binary", "large_binary"]
    if not (nested and ending == ".parquet"):  # These pyarrow itself cannot write.
        names += ["string_view", "binary_view"]
    kinds = [getattr(arrow, name)() for name in names if hasattr(arrow, name)]
    for number, kind in enumerate([*kinds, arrow.dictionary(arrow.int32(), arrow.string())]):
        values = [text.encode() for text in texts] if "binary" in str(kind) else texts
        column = (
            arrow.array(values).dictionary_encode()
            if "dictionary" in str(kind)
            else arrow.array(values, kind)
        )
        table = arrow.table({"id": range(len(texts)), "text": column})
        if nested:
            table = arrow.table({"record": table.to_struct_array()})
        path = tmp_path / f"{number}{ending}"
        WRITERS[ending](arrow, table, path)
        consumed: list[int] = []
        reading = Reading(text_column="record.text" if nested else "text")
        assert list(read_documents(path, reading, advance=consumed.append)) == texts, kind
        assert sum(consumed) == path.stat().st_size


def _write_parquet(arrow: Any, table: Any, path: Path) -> None:
    pytest.importorskip("pyarrow.parquet").write_table(table, path, row_group_size=300)


def _write_stream(arrow: Any, table: Any, path: Path) -> None:
    with arrow.ipc.new_stream(path, table.schema) as file:
        file.write_table(table, max_chunksize=300)


WRITERS: dict[str, Callable[[Any, Any, Path], None]] = {".parquet": _write_parquet, ".arrow": _write_stream}


def test_bad_rows_are_left_out_and_counted_on_request(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    bad = arrow.Array.from_buffers(
        arrow.string(), 2, [None, arrow.py_buffer(b"\0\0\0\0\2\0\0\0\3\0\0\0"), arrow.py_buffer(b"\xff\xfea")]
    )
    text = arrow.concat_arrays([arrow.array(["x", None, "y"]), bad])
    for ending, write in WRITERS.items():
        path, skipped = tmp_path / f"a{ending}", Counter[str]()
        write(arrow, arrow.table({"text": text}), path)
        assert list(read_documents(path, SKIP, skipped=skipped)) == ["x", "y", "a"]
        assert skipped == {"null": 1, "not UTF-8": 1}
        assert 'row 1: "text" is NoneType' in _error(path)
        write(arrow, arrow.table({"text": [1, 2], "a": [{"b": "x"}, {"b": "y"}]}), path)
        assert 'column "text" holds int64, not text (columns: text, a.b); name the one' in _error(path)


def _saved(folder: Path, texts: list[str]) -> Path:
    """What `datasets.save_to_disk` writes."""
    arrow = pytest.importorskip("pyarrow")
    folder.mkdir(parents=True)
    names = [f"data-{index:05d}-of-00002.arrow" for index in range(2)]
    for name, part in zip(names, (texts[:2], texts[2:]), strict=True):
        _write_stream(arrow, arrow.table({"text": part}), folder / name)
    (folder / "dataset_info.json").write_text('{"features": {}}')
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    return folder


def test_folders_of_datasets(tmp_path: Path) -> None:
    def texts(*arguments: Any) -> list[str]:
        return [text for path in find_sources(*arguments) for text in read_documents(path)]

    assert texts([_saved(tmp_path / "one", TEXTS)]) == TEXTS
    several = tmp_path / "several"
    _saved(several / "train", TEXTS)
    _saved(several / "test", TEXTS[::-1])
    (several / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert texts([several]) == TEXTS
    assert texts([several / "test"]) == texts([several], ("validation", "test")) == TEXTS[::-1]
    with pytest.raises(PgolfError, match=r"has no split dev \(it has: train, test\); name a split's folder"):
        find_sources([several], ["dev"])
    (tmp_path / "one" / "state.json").write_text('{"_data_files": [{"filename": "../../etc/passwd"}]}')
    with pytest.raises(PgolfError, match=r"state\.json: damaged"):
        find_sources([tmp_path / "one"])


def test_a_plain_folder_stands_for_its_text_files(tmp_path: Path) -> None:
    for name in ("b.txt", "a.jsonl", ".hidden.txt", "notes.md"):
        _file(tmp_path, name, b"x")
    assert [path.name for path in find_sources([tmp_path])] == ["a.jsonl", "b.txt"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(PgolfError, match="empty: holds no text files"):
        find_sources([tmp_path / "empty"])
