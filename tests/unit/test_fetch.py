"""Fetching the official data, from a small stand-in for the Hugging Face hub on this machine."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import pytest

from pgolf.data.dataset import open_dataset
from pgolf.data.prepare import shard_header
from pgolf.data.vocabulary import train_tokenizer
from pgolf.errors import PgolfError

pytest.importorskip("huggingface_hub")
from pgolf.data import fetch as module

REPOSITORY = module.PUBLISHED["fineweb-sp1024"].repository
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHARDS = "datasets/datasets/fineweb10B_sp1024"
MODEL = "datasets/tokenizers/fineweb_1024_bpe.model"
FOLDER = "datasets/fineweb10B_sp1024"


@dataclass
class Hub:
    """A dataset repository with its files, and what went over the wire."""

    files: dict[str, bytes]
    address: str = ""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    damaged: set[str] = field(default_factory=set)
    """Paths that arrive with a byte changed."""
    broken: dict[str, int] = field(default_factory=dict)
    """Paths whose connection ends after this many bytes of the file."""

    def fetch(self, out: Path, train_shards: int = 1, **options: Any) -> Path:
        given = {"repository": REPOSITORY, "endpoint": self.address} | options
        return module.fetch(given.pop("name", "fineweb-sp1024"), out, train_shards, **given)

    def downloads(self) -> list[str]:
        return [path for method, path, _ in self.requests if method == "GET" and path in self.files]


def _shard(seed: int, count: int) -> bytes:
    tokens = np.random.default_rng(seed).integers(4, 300, count).astype("<u2")
    tokens[0] = 1
    return shard_header(count) + tokens.tobytes()


def _manifest(files: dict[str, bytes]) -> dict[str, Any]:
    return {
        "datasets": [
            {"name": "fineweb10B_byte260", "tokenizer_name": "pure_byte_260", "stats": {}},
            {
                "name": "fineweb10B_sp1024",
                "tokenizer_name": "sp_bpe_1024",
                "stats": {"files_train": 3, "files_val": 1},
            },
        ],
        "tokenizers": [{"name": "sp_bpe_1024", "model_path": "tokenizers/fineweb_1024_bpe.model"}],
    }


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *ignored: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._file(send_body=False)

    def do_GET(self) -> None:
        if self.path.startswith("/api/datasets/owner/missing"):
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif self.path.startswith("/api/datasets/"):
            self._answer(200, json.dumps({"id": REPOSITORY, "sha": COMMIT}).encode())
        else:
            self._file(send_body=True)

    def do_POST(self) -> None:
        assert self.path == f"/api/datasets/{REPOSITORY}/paths-info/{COMMIT}"
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        infos = []
        for path in parse_qs(body)["paths"]:
            if path not in self.hub.files:
                continue
            content = self.hub.files[path]
            git = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
            info: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git}
            if path.endswith(".bin"):
                lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
                info |= {"oid": "0" * 40, "lfs": lfs}
            infos.append(info)
        self._answer(200, json.dumps(infos).encode())

    def _file(self, send_body: bool) -> None:
        path = self.path.split("?")[0].removeprefix(f"/datasets/{REPOSITORY}/resolve/{COMMIT}/")
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        content = self.hub.files.get(path)
        if content is None:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        digest = hashlib.sha256(content).hexdigest()
        headers = {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if path in self.hub.damaged:
            content = content[:-1] + bytes([content[-1] ^ 1])
        start, size, status = 0, len(content), 200
        if send_body and self.headers.get("Range"):
            start, status = int(self.headers["Range"].removeprefix("bytes=").rstrip("-")), 206
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        end = self.hub.broken.get(path, size) if send_body else size
        self._answer(status, content[start:end] if send_body else b"", headers, length=size - start)

    def _answer(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, length: int = -1
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length if length >= 0 else len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("tokenizer") / "t.model"
    train_tokenizer(["a few words for a small tokenizer " * 20], 300, path)
    return path.read_bytes()


@pytest.fixture
def hub(tokenizer: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in, with three training shards, one validation shard, tokenizer and manifest."""
    file_download = pytest.importorskip("huggingface_hub.file_download")
    # Partial data is written in chunks of this size; and between attempts the client sleeps.
    monkeypatch.setattr(file_download.constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("HF_TOKEN", "")
    files = {f"{SHARDS}/fineweb_train_{index:06d}.bin": _shard(index, 10_000 + index) for index in range(3)}
    files[f"{SHARDS}/fineweb_val_000000.bin"] = _shard(9, 5000)
    files[MODEL] = tokenizer
    files["datasets/manifest.json"] = json.dumps(_manifest(files)).encode()
    stand_in = Hub(files)
    handler = type("Handler", (_Handler,), {"hub": stand_in})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    stand_in.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield stand_in
    server.shutdown()
    thread.join()
    server.server_close()


def _local(out: Path, path: str) -> Path:
    return out / Path(path).relative_to("datasets")


def test_what_is_fetched_is_the_official_layout_and_opens(hub: Hub, tmp_path: Path) -> None:
    folder = hub.fetch(tmp_path, 2)
    assert folder == tmp_path / FOLDER
    fetched = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    expected = {path for path in hub.files if not path.endswith("train_000002.bin")}
    assert fetched == {Path(path).relative_to("datasets").as_posix() for path in expected}
    assert all(_local(tmp_path, path).read_bytes() == hub.files[path] for path in expected)
    dataset = open_dataset(folder, vocab_size=300)
    assert len(dataset.train_shards) == 2 and len(dataset.val_shards) == 1
    assert dataset.train_stream().total == 20_001


def test_files_that_are_there_are_kept_and_damaged_ones_replaced(hub: Hub, tmp_path: Path) -> None:
    hub.fetch(tmp_path, 2)
    hub.requests.clear()
    hub.fetch(tmp_path, 2)
    assert hub.downloads() == []
    damaged = tmp_path / FOLDER / "fineweb_train_000001.bin"
    damaged.write_bytes(damaged.read_bytes()[:-2] + b"\0\0")
    hub.fetch(tmp_path, 3)
    assert hub.downloads() == [f"{SHARDS}/fineweb_train_{index:06d}.bin" for index in (1, 2)]
    assert damaged.read_bytes() == hub.files[f"{SHARDS}/fineweb_train_000001.bin"]


@pytest.mark.parametrize("path", [f"{SHARDS}/fineweb_train_000000.bin", MODEL, "datasets/manifest.json"])
def test_a_wrong_checksum_is_an_error_and_leaves_no_file(hub: Hub, tmp_path: Path, path: str) -> None:
    hub.damaged.add(path)
    with pytest.raises(PgolfError, match=f"{path}: differs from its checksum"):
        hub.fetch(tmp_path)
    assert not _local(tmp_path, path).exists()
    hub.damaged.clear()
    hub.fetch(tmp_path)
    assert _local(tmp_path, path).read_bytes() == hub.files[path]


def test_checksums_of_the_manifest_count_as_well(hub: Hub, tmp_path: Path) -> None:
    manifest = _manifest(hub.files)
    path = f"{SHARDS}/fineweb_val_000000.bin"
    manifest["files"] = [{"path": str(Path(path).relative_to("datasets")), "sha256": "0" * 64}]
    hub.files["datasets/manifest.json"] = json.dumps(manifest).encode()
    with pytest.raises(PgolfError, match=f"{path}: differs from its checksum"):
        hub.fetch(tmp_path)
    assert not _local(tmp_path, path).exists()


def test_an_interrupted_download_continues_where_it_ended(hub: Hub, tmp_path: Path) -> None:
    path = f"{SHARDS}/fineweb_train_000000.bin"
    hub.broken[path] = 12_345
    with pytest.raises(PgolfError, match="could not be fetched") as caught:
        hub.fetch(tmp_path)
    assert "\n" not in str(caught.value)
    assert not _local(tmp_path, path).exists()
    assert _local(tmp_path, MODEL).is_file()
    hub.broken.clear()
    hub.requests.clear()
    hub.fetch(tmp_path)
    assert hub.downloads() == [path]
    assert [part for method, name, part in hub.requests if method == "GET"] == ["bytes=12000-"]
    assert _local(tmp_path, path).read_bytes() == hub.files[path]
    assert not (tmp_path / ".fetching").exists()


def test_a_foreign_file_in_place_of_a_shard(hub: Hub, tmp_path: Path) -> None:
    path = f"{SHARDS}/fineweb_val_000000.bin"
    hub.files[path] = b"not a shard" * 200
    with pytest.raises(PgolfError, match="not a token shard"):
        hub.fetch(tmp_path)
    assert not _local(tmp_path, path).exists()


def test_more_shards_than_there_are(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(PgolfError, match="--train-shards 4: fineweb10B_sp1024 has only 3"):
        hub.fetch(tmp_path, 4)


def test_a_file_that_the_hub_lacks(hub: Hub, tmp_path: Path) -> None:
    del hub.files[f"{SHARDS}/fineweb_train_000001.bin"]
    with pytest.raises(PgolfError, match=r"no file .*fineweb_train_000001\.bin"):
        hub.fetch(tmp_path, 2)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"datasets": []}, "no entry fineweb10B_sp1024"),
        ({"datasets": [{"name": "fineweb10B_sp1024"}]}, "does not count the shards"),
        ({"tokenizers": 3}, "no entry sp_bpe_1024"),
        (
            {"tokenizers": [{"name": "sp_bpe_1024", "model_path": "tokenizers/../../x.model"}]},
            "not in tokenizers/",
        ),
        ({"tokenizers": [{"name": "sp_bpe_1024"}]}, "not in tokenizers/"),
    ],
)
def test_a_manifest_that_makes_no_sense(
    hub: Hub, tmp_path: Path, change: dict[str, Any], expected: str
) -> None:
    hub.files["datasets/manifest.json"] = json.dumps(_manifest(hub.files) | change).encode()
    with pytest.raises(PgolfError, match=expected):
        hub.fetch(tmp_path)


def _caseops(hub: Hub, counts: list[int]) -> str:
    """Put the CaseOps data set into the repository too, with such a side-car; returns its path."""
    name = module.PUBLISHED["fineweb-sp8192-caseops"].dataset
    for path, content in list(hub.files.items()):
        hub.files[path.replace("fineweb10B_sp1024", name)] = content
    path = f"datasets/datasets/{name}/fineweb_val_bytes_000000.bin"
    hub.files[path] = shard_header(len(counts)) + np.array(counts, "<u2").tobytes()
    manifest = _manifest(hub.files)
    manifest["datasets"].append({**manifest["datasets"][1], "name": name})
    hub.files["datasets/manifest.json"] = json.dumps(manifest).encode()
    return path


def test_side_cars_come_along(hub: Hub, tmp_path: Path) -> None:
    path = _caseops(hub, [0, *[1] * 4999])
    folder = hub.fetch(tmp_path, name="fineweb-sp8192-caseops")
    assert (folder / "fineweb_val_bytes_000000.bin").read_bytes() == hub.files[path]
    assert open_dataset(folder, vocab_size=300).validation_text(1).byte_counts.tolist() == [1] * 4999


def test_a_side_car_of_another_length_than_its_shard(hub: Hub, tmp_path: Path) -> None:
    _caseops(hub, [0, 1, 1])
    with pytest.raises(
        PgolfError, match=r"val_bytes_000000\.bin: has 3 entries, .* has 5000 tokens"
    ) as caught:
        hub.fetch(tmp_path, name="fineweb-sp8192-caseops")
    assert "\n" not in str(caught.value)


def test_names_and_repositories_that_do_not_exist(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(PgolfError, match="not a published data set; use fineweb-sp1024"):
        module.fetch("fineweb", tmp_path)
    with pytest.raises(PgolfError, match="owner/missing: no such public dataset"):
        hub.fetch(tmp_path, repository="owner/missing")


def test_no_connection(tmp_path: Path, hub: Hub) -> None:
    hub.address = "http://127.0.0.1:9"
    with pytest.raises(PgolfError, match="could not be fetched"):
        hub.fetch(tmp_path)
