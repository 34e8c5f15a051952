"""The official FineWeb shards from the Hugging Face hub: resumable, every file checked."""

from __future__ import annotations

import errno
import hashlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from pgolf.data.shards import byte_files, read_byte_counts, shard_length, token_shards
from pgolf.errors import PgolfError
from pgolf.runtime.files import read_bytes, read_json, sha256_file
from pgolf.runtime.locks import LOCK, held
from pgolf.runtime.paths import write_error
from pgolf.runtime.writing import flush_to_disk


class Published(NamedTuple):
    """Where a data set is published; each repository has the official layout and a manifest."""

    repository: str
    """On the hub."""
    dataset: str
    """Name in the hub's manifest."""
    side_cars: bool = False
    """Whether byte side-cars lie beside its validation shards."""


PUBLISHED = {
    "fineweb-sp1024": Published("willdepueoai/parameter-golf", "fineweb10B_sp1024"),
    # openai/parameter-golf #1218 and #1394, and #1729: the data of the best public runs.
    "fineweb-sp4096": Published("kevclark/parameter-golf", "fineweb10B_sp4096"),
    "fineweb-sp8192": Published("kevclark/parameter-golf", "fineweb10B_sp8192"),
    "fineweb-sp8192-caseops": Published(
        "romeerp/parameter-golf-caseops-v1",
        "fineweb10B_sp8192_lossless_caps_caseops_v1_reserved",
        side_cars=True,
    ),
}
"""The data sets, by our names."""

_ROOT = "datasets"
# The token that begins a document, in all of them.
_BOS = 1
_STAGING = ".fetching"
# What is wrong on this machine, and not with the connection.
_LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)


def fetch(
    name: str,
    out: Path,
    train_shards: int = 1,
    revision: str | None = None,
    *,
    repository: str | None = None,
    endpoint: str | None = None,
) -> Path:
    """Fetch a published data set in the official layout and return its folder of shards.

    ``out`` then holds ``manifest.json``, ``datasets/NAME/*.bin`` and ``tokenizers/*.model``. Files arrive in
    a hidden folder and move to their place once they were checked: against the SHA-256 that the hub states
    (for small files git's own digest), against the manifest's if it states one, and as shards against their
    headers; in the end side-cars against their shards. Run again, it keeps the files that pass the same
    checks and continues partial ones; one process at a time may.

    Args:
        name: one of ``PUBLISHED``.
        out: the folder to fill.
        train_shards: how many training shards, from the first on; validation shards always come all.
        revision: branch, tag or commit; default the newest.
        repository: another dataset repository on the hub, with the same layout.
        endpoint: address of the hub; default ``HF_ENDPOINT`` or the public one.
    """
    if name not in PUBLISHED:
        raise PgolfError(f"{name}: not a published data set; use {', '.join(PUBLISHED)}")
    usual, dataset, side_cars = PUBLISHED[name]
    folder = out / "datasets" / dataset
    hub = _Hub(repository or usual, revision, endpoint, out / _STAGING)
    # What a killed process has left of its lock is no news: its files are continued.
    with held(out / LOCK, "download", note=lambda line: None):
        try:
            hub.bring({f"{_ROOT}/manifest.json": out / "manifest.json"}, {})
            manifest = read_json(out / "manifest.json")
            paths = _paths(manifest, dataset, train_shards, side_cars)
            digests = {f"{_ROOT}/{path}": digest for path, digest in _stated_digests(manifest)}
            hub.bring({path: out / PurePosixPath(path).relative_to(_ROOT) for path in paths}, digests)
            val = token_shards(folder, "val")
            for path, shard in zip(byte_files(folder, val, "val"), val, strict=False):
                read_byte_counts(path, shard, _BOS)
            shutil.rmtree(out / _STAGING, ignore_errors=True)
        except OSError as error:
            raise write_error(out, error) from error
    return folder


def _paths(manifest: Any, dataset: str, train_shards: int, side_cars: bool) -> list[str]:
    """Paths of a data set in the repository, small files first, by what the hub's manifest says."""
    entry = _entry(manifest, "datasets", dataset)
    try:
        stats: Any = entry.get("stats")
        val_shards, available = int(stats["files_val"]), int(stats["files_train"])
    except (TypeError, KeyError, ValueError) as error:
        raise PgolfError(f"the hub's manifest does not count the shards of {dataset}") from error
    if train_shards > available:
        raise PgolfError(f"--train-shards {train_shards}: {dataset} has only {available}; ask for fewer")
    tokenizer = _entry(manifest, "tokenizers", str(entry.get("tokenizer_name")))
    model = str(tokenizer.get("model_path") or tokenizer.get("path"))
    parts = PurePosixPath(model).parts
    if parts[:1] != ("tokenizers",) or ".." in parts:
        raise PgolfError(f"the hub's manifest puts the tokenizer at {model}, not in tokenizers/")
    counts = [("val", val_shards), ("val_bytes", val_shards * side_cars), ("train", train_shards)]
    shards = [f"{split}_{index:06d}" for split, count in counts for index in range(count)]
    return [f"{_ROOT}/{model}", *(f"{_ROOT}/datasets/{dataset}/fineweb_{shard}.bin" for shard in shards)]


def _entry(manifest: Any, section: str, name: str) -> dict[str, Any]:
    entries = manifest.get(section) if isinstance(manifest, dict) else None
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and entry.get("name") == name:
            return entry
    raise PgolfError(f"the hub's manifest has no entry {name} among its {section}")


def _stated_digests(tree: Any) -> Iterator[tuple[str, str]]:
    """Path and SHA-256 of every file that the manifest states one for."""
    if isinstance(tree, dict):
        path, digest = tree.get("path") or tree.get("model_path"), tree.get("sha256")
        if isinstance(path, str) and isinstance(digest, str):
            yield path, digest
        tree = list(tree.values())
    for value in tree if isinstance(tree, list) else []:
        yield from _stated_digests(value)


class _Hub:
    """One commit of a dataset repository; downloads go through the folder ``staging``."""

    def __init__(self, repository: str, revision: str | None, endpoint: str | None, staging: Path) -> None:
        try:
            import huggingface_hub
            import huggingface_hub.file_download
        except ImportError as error:
            remedy = "install it with pip install 'pgolf[hub]'"
            raise PgolfError(f"fetching needs huggingface_hub; {remedy}") from error
        if not sys.stderr.isatty():
            huggingface_hub.utils.disable_progress_bars()
        self._library: Any = huggingface_hub
        self._api: Any = huggingface_hub.HfApi(endpoint=endpoint)
        self._repository, self._endpoint, self._staging = repository, endpoint, staging
        # A commit, so that all files belong together even if the repository changes meanwhile.
        commit = self._ask(self._api.dataset_info, repository, revision=revision).sha
        self._where = {"repo_type": "dataset", "revision": commit}

    def bring(self, files: dict[str, Path], digests: dict[str, str]) -> None:
        """Have each path of the repository at its place, checked; ``digests`` are further SHA-256."""
        infos = self._ask(self._api.get_paths_info, self._repository, list(files), **self._where)
        stated = {info.path: info for info in infos if hasattr(info, "blob_id")}
        for path, target in files.items():
            if path not in stated:
                raise PgolfError(f"{self._repository}: the hub has no file {path} in it")
            size, lfs = stated[path].size, stated[path].lfs
            name = lfs.sha256 if lfs else stated[path].blob_id
            expected = {name, digests.get(path, name)}
            if target.is_file() and _is_right(target, size, expected):
                continue
            # Named by content, so that a partial file is only ever continued with the rest of the same file.
            arrived = self._staging / name
            self._download(path, arrived, size)
            if not _is_right(arrived, size, expected):
                arrived.unlink()
                again = "run the command again"
                raise PgolfError(f"{path}: differs from its checksum after the download; {again}")
            if target.suffix == ".bin":
                shard_length(arrived)
            target.parent.mkdir(parents=True, exist_ok=True)
            arrived.replace(target)

    def _download(self, path: str, target: Path, size: int) -> None:
        # Not hf_hub_download: in recent versions (2.4) it starts over if the process was interrupted.
        target.parent.mkdir(parents=True, exist_ok=True)
        url = self._library.hf_hub_url(self._repository, path, endpoint=self._endpoint, **self._where)
        with target.open("ab") as file:
            if file.tell() > size:
                file.truncate(0)
                file.seek(0)
            headers, shown = self._library.utils.build_hf_headers(), PurePosixPath(path).name
            sizes = {"resume_size": file.tell(), "expected_size": size}
            get = self._library.file_download.http_get
            self._ask(get, url, file, headers=headers, displayed_filename=shown, **sizes)
            file.flush()
            flush_to_disk(file.fileno())

    def _ask(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        kinds = self._library.utils
        try:
            return method(*arguments, **options)
        except (kinds.RepositoryNotFoundError, kinds.RevisionNotFoundError) as error:
            raise PgolfError(f"{self._repository}: no such public dataset or revision on the hub") from error
        except Exception as error:  # the client's libraries have many kinds for a connection that fails
            if isinstance(error, OSError) and error.errno in _LOCAL:
                raise
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            remedy = "what has arrived is kept, run the command again"
            raise PgolfError(f"{self._repository}: could not be fetched ({reason}); {remedy}") from error


def _is_right(path: Path, size: int, digests: set[str]) -> bool:
    """Whether a file has a size and digests: its SHA-256, or of 40 digits the SHA-1 that git gives it."""
    if path.stat().st_size != size:
        return False
    for digest in digests:
        if len(digest) == 64:
            found = sha256_file(path)
        else:
            found = hashlib.sha1(f"blob {size}\0".encode() + read_bytes(path)).hexdigest()
        if found != digest:
            return False
    return True
