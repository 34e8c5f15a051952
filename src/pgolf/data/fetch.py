"""The official FineWeb shards from the Hugging Face hub: resumable, every file checked."""

from __future__ import annotations

import errno
import hashlib
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pgolf.data.shards import shard_length
from pgolf.errors import PgolfError
from pgolf.runtime.files import read_json
from pgolf.runtime.locks import LOCK, held
from pgolf.runtime.paths import write_error
from pgolf.runtime.writing import flush_to_disk

REPOSITORY = "willdepueoai/parameter-golf"
PUBLISHED = {"fineweb-sp1024": "fineweb10B_sp1024"}
"""Our name of each data set, and its name in the hub's manifest."""

_ROOT = "datasets"
_STAGING = ".fetching"


def fetch(
    name: str,
    out: Path,
    train_shards: int = 1,
    revision: str | None = None,
    *,
    repository: str = REPOSITORY,
    endpoint: str | None = None,
) -> Path:
    """Fetch a published data set in the official layout and return its folder of shards.

    ``out`` then holds ``manifest.json``, ``datasets/NAME/*.bin`` and ``tokenizers/*.model``. Files arrive
    in a hidden folder and move to their place once they were checked: against the SHA-256 that the hub
    states (for small files git's own digest), against the manifest's if it states one, and as shards
    against their headers. Run again, it keeps the files that pass the same checks and continues partial ones.

    Args:
        name: one of ``PUBLISHED``.
        out: the folder to fill.
        train_shards: how many training shards, from the first on; validation shards always come all.
        revision: branch, tag or commit; default the newest.
        repository: dataset repository on the hub.
        endpoint: address of the hub; default ``HF_ENDPOINT`` or the public one.

    Raises:
        PgolfError: unknown name, no huggingface_hub, no connection, another process that fetches into
            ``out``, more shards than there are, a file that differs from its checksum, or a full disk.
    """
    if name not in PUBLISHED:
        raise PgolfError(f"{name}: not a published data set; use {', '.join(PUBLISHED)}")
    dataset = PUBLISHED[name]
    hub = _Hub(repository, revision, endpoint, out / _STAGING)
    # What a killed process has left of its lock is no news: its files are continued.
    with held(out / LOCK, "download", note=lambda line: None):
        try:
            listing = f"{_ROOT}/manifest.json"
            hub.bring({listing: out / "manifest.json"}, {})
            manifest = _Manifest(read_json(out / "manifest.json"), dataset, train_shards)
            files = {path: out / PurePosixPath(path).relative_to(_ROOT) for path in manifest.paths()}
            hub.bring(files, manifest.digests())
            shutil.rmtree(out / _STAGING, ignore_errors=True)
        except OSError as error:
            raise write_error(out, error) from error
    return out / "datasets" / dataset


class _Manifest:
    """What the hub's manifest says about one data set."""

    def __init__(self, tree: Any, dataset: str, train_shards: int) -> None:
        self._tree, self._dataset = tree, dataset
        self._train_shards = train_shards
        entry = self._entry("datasets", dataset)
        stats: Any = entry.get("stats")
        try:
            self._val_shards, available = int(stats["files_val"]), int(stats["files_train"])
        except (TypeError, KeyError, ValueError) as error:
            raise PgolfError(f"the hub's manifest does not count the shards of {dataset}") from error
        if train_shards > available:
            raise PgolfError(f"--train-shards {train_shards}: {dataset} has only {available}; ask for fewer")
        tokenizer = self._entry("tokenizers", str(entry.get("tokenizer_name")))
        self._model = str(tokenizer.get("model_path") or tokenizer.get("path"))
        parts = PurePosixPath(self._model).parts
        if parts[:1] != ("tokenizers",) or ".." in parts:
            raise PgolfError(f"the hub's manifest puts the tokenizer at {self._model}, not in tokenizers/")

    def _entry(self, section: str, name: str) -> dict[str, Any]:
        entries = self._tree.get(section) if isinstance(self._tree, dict) else None
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, dict) and entry.get("name") == name:
                return entry
        raise PgolfError(f"the hub's manifest has no entry {name} among its {section}")

    def paths(self) -> list[str]:
        """Paths in the repository, small files first."""
        shards = [f"val_{index:06d}" for index in range(self._val_shards)]
        shards += [f"train_{index:06d}" for index in range(self._train_shards)]
        folder = f"{_ROOT}/datasets/{self._dataset}"
        return [f"{_ROOT}/{self._model}", *(f"{folder}/fineweb_{shard}.bin" for shard in shards)]

    def digests(self) -> dict[str, str]:
        """SHA-256 by path in the repository, of every file the manifest states one for."""
        return {f"{_ROOT}/{path}": digest for path, digest in _stated_digests(self._tree)}


def _stated_digests(tree: Any) -> Iterator[tuple[str, str]]:
    if isinstance(tree, dict):
        path, digest = tree.get("path") or tree.get("model_path"), tree.get("sha256")
        if isinstance(path, str) and isinstance(digest, str):
            yield path, digest
        tree = list(tree.values())
    if isinstance(tree, list):
        for value in tree:
            yield from _stated_digests(value)


@dataclass(frozen=True)
class _Stated:
    """Size in bytes and digest of a file: SHA-256, or of small files the SHA-1 that git gives them."""

    size: int
    sha256: str | None
    git: str

    def matches(self, path: Path) -> bool:
        if path.stat().st_size != self.size:
            return False
        digest = hashlib.sha256() if self.sha256 else hashlib.sha1(f"blob {self.size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest() == (self.sha256 or self.git)


class _Hub:
    """One commit of a dataset repository; downloads go through the folder ``staging``."""

    def __init__(self, repository: str, revision: str | None, endpoint: str | None, staging: Path) -> None:
        try:
            import huggingface_hub
            import huggingface_hub.file_download
        except ImportError as error:
            raise PgolfError(
                "fetching needs huggingface_hub; install it with pip install 'pgolf[hub]'"
            ) from error
        if not sys.stderr.isatty():
            huggingface_hub.utils.disable_progress_bars()
        self._library: Any = huggingface_hub
        self._api: Any = huggingface_hub.HfApi(endpoint=endpoint)
        self._repository, self._endpoint, self._staging = repository, endpoint, staging
        # A commit, so that all files belong together even if the repository changes meanwhile.
        self._revision = self._ask(self._api.dataset_info, repository, revision=revision).sha

    def bring(self, files: dict[str, Path], digests: dict[str, str]) -> None:
        """Have every path of the repository at its place, checked; ``digests`` are further SHA-256 to check."""
        stated = self._stated(list(files))
        for path, target in files.items():
            checks = [stated[path]]
            if path in digests:
                checks.append(_Stated(stated[path].size, digests[path], ""))
            if target.is_file() and all(check.matches(target) for check in checks):
                continue
            # Named by content, so that a partial file is only ever continued with the rest of the same file.
            arrived = self._staging / (stated[path].sha256 or stated[path].git)
            self._download(path, arrived, stated[path].size)
            if not all(check.matches(arrived) for check in checks):
                arrived.unlink()
                raise PgolfError(
                    f"{path}: differs from its checksum after the download; run the command again"
                )
            if target.suffix == ".bin":
                shard_length(arrived)
            target.parent.mkdir(parents=True, exist_ok=True)
            arrived.replace(target)

    def _download(self, path: str, target: Path, size: int) -> None:
        # Not hf_hub_download: in recent versions (2.4) it starts over if the process was interrupted.
        target.parent.mkdir(parents=True, exist_ok=True)
        url = self._library.hf_hub_url(
            self._repository, path, repo_type="dataset", revision=self._revision, endpoint=self._endpoint
        )
        with target.open("ab") as file:
            if file.tell() > size:
                file.truncate(0)
                file.seek(0)
            self._ask(
                self._library.file_download.http_get,
                url,
                file,
                resume_size=file.tell(),
                headers=self._library.utils.build_hf_headers(),
                expected_size=size,
                displayed_filename=PurePosixPath(path).name,
            )
            file.flush()
            flush_to_disk(file.fileno())

    def _stated(self, paths: Sequence[str]) -> dict[str, _Stated]:
        infos = self._ask(
            self._api.get_paths_info,
            self._repository,
            list(paths),
            repo_type="dataset",
            revision=self._revision,
        )
        stated = {
            info.path: _Stated(info.size, info.lfs.sha256 if info.lfs else None, info.blob_id)
            for info in infos
            if hasattr(info, "blob_id")
        }
        missing = [path for path in paths if path not in stated]
        if missing:
            raise PgolfError(f"{self._repository}: the hub has no file {missing[0]} in it")
        return stated

    def _ask(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        try:
            return method(*arguments, **options)
        except (
            self._library.utils.RepositoryNotFoundError,
            self._library.utils.RevisionNotFoundError,
        ) as error:
            raise PgolfError(f"{self._repository}: no such public dataset or revision on the hub") from error
        except Exception as error:  # the client's libraries have many kinds for a connection that fails
            if isinstance(error, OSError) and error.errno in (
                errno.ENOSPC,
                errno.EDQUOT,
                errno.EACCES,
                errno.EROFS,
            ):
                raise
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise PgolfError(
                f"{self._repository}: could not be fetched ({reason}); what has arrived is kept, run the command again"
            ) from error
