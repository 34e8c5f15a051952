"""The official FineWeb shards from the Hugging Face hub: resumable, every file checked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pgolf.data.shards import shard_length
from pgolf.errors import PgolfError
from pgolf.files import sha256_file, write_json

REPOSITORY = "willdepueoai/parameter-golf"
_ROOT = "datasets"
# Our name of a data set: its name in the hub's manifest.
PUBLISHED = {"fineweb-sp1024": "fineweb10B_sp1024"}
_CHECKED = ".checked.json"


def fetch(name: str, out: Path, train_shards: int = 1, repository: str = REPOSITORY) -> Path:
    """Fetch a published data set in the official layout: ``out/datasets/NAME/*.bin`` and ``out/tokenizers``.

    Files that are already there and were checked are kept; partial downloads continue. Every file is
    compared with the SHA-256 that the manifest, or else the hub itself, has for it. ``HF_ENDPOINT`` names
    another hub.

    Args:
        name: one of ``PUBLISHED``.
        out: folder to fill.
        train_shards: training shards to fetch, the first ones; all validation shards always come.
        repository: dataset repository on the hub.

    Returns:
        The folder of shards, for ``--data``.

    Raises:
        PgolfError: unknown name, no huggingface_hub, no connection, fewer shards than asked for, or a file
            that does not match its checksum.
    """
    if name not in PUBLISHED:
        raise PgolfError(f"{name}: not a published data set; use {', '.join(PUBLISHED)}")
    hub = _Hub(repository, out)
    manifest = hub.manifest()
    entry = _named(manifest.get("datasets", []), PUBLISHED[name], "data set")
    available = int(entry.get("stats", {}).get("files_train", 0))
    if train_shards > available:
        raise PgolfError(f"--train-shards {train_shards}: {name} has only {available}")
    tokenizer = _named(manifest.get("tokenizers", []), str(entry.get("tokenizer_name")), "tokenizer")
    folder = f"{_ROOT}/datasets/{PUBLISHED[name]}"
    wanted = [f"{_ROOT}/{tokenizer['model_path']}"]
    wanted += [f"{folder}/fineweb_val_{index:06d}.bin" for index in range(int(entry["stats"]["files_val"]))]
    wanted += [f"{folder}/fineweb_train_{index:06d}.bin" for index in range(train_shards)]
    hub.download(wanted, _manifest_digests(manifest))
    return out / "datasets" / PUBLISHED[name]


class _Hub:
    """One dataset repository, downloaded below ``out`` without its leading folder."""

    def __init__(self, repository: str, out: Path) -> None:
        try:
            import huggingface_hub
        except ImportError as error:
            raise PgolfError("fetching needs huggingface_hub; install pgolf[hub]") from error
        self._library: Any = huggingface_hub
        self._repository, self._out = repository, out

    def manifest(self) -> dict[str, Any]:
        """The hub's list of data sets and tokenizers, always fetched anew."""
        path = self._fetch(f"{_ROOT}/manifest.json")
        try:
            loaded = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise PgolfError(f"{self._repository}: its manifest.json is not valid JSON ({error})") from error
        if not isinstance(loaded, dict):
            raise PgolfError(f"{self._repository}: its manifest.json is not an object")
        shutil.copyfile(path, self._out / "manifest.json")
        return loaded

    def download(self, paths: list[str], digests: dict[str, str]) -> None:
        """Fetch and check files; what was checked before is not touched again."""
        record = self._out / _CHECKED
        checked: dict[str, str] = json.loads(record.read_text()) if record.is_file() else {}
        missing = [path for path in paths if not self._is_checked(path, checked)]
        expected = self._hub_digests([path for path in missing if path not in digests]) | digests
        for path in missing:
            source, target = self._fetch(path), self._out / Path(path).relative_to(_ROOT)
            digest = sha256_file(source)
            if path in expected and digest != expected[path]:
                # The damaged copy must go, or the next attempt would find it again.
                source.resolve().unlink(missing_ok=True)
                source.unlink(missing_ok=True)
                raise PgolfError(
                    f"{path}: SHA-256 {digest[:12]} instead of {expected[path][:12]}; run the command again"
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(source.resolve(), target)
            source.unlink(missing_ok=True)
            if target.suffix == ".bin":
                shard_length(target)
            checked[path] = digest
            write_json(record, checked)

    def _is_checked(self, path: str, checked: dict[str, str]) -> bool:
        target = self._out / Path(path).relative_to(_ROOT)
        return path in checked and target.is_file() and (target.suffix != ".bin" or bool(shard_length(target)))

    def _fetch(self, path: str) -> Path:
        try:
            # Within a local folder the hub's client continues partial downloads by itself.
            return Path(
                self._library.hf_hub_download(
                    self._repository, path, repo_type="dataset", local_dir=self._out / ".download"
                )
            )
        except self._library.errors.EntryNotFoundError as error:
            raise PgolfError(f"{self._repository}: has no file {path}") from error
        except self._library.errors.RepositoryNotFoundError as error:
            raise PgolfError(f"{self._repository}: no such public repository on the hub") from error
        except Exception as error:  # The client raises many kinds for a connection that fails.
            reason = " ".join(str(error).split()) or type(error).__name__
            raise PgolfError(
                f"{path}: could not be fetched ({reason[:200]}); run the command again to continue"
            ) from error

    def _hub_digests(self, paths: list[str]) -> dict[str, str]:
        if not paths:
            return {}
        try:
            infos = self._library.HfApi().get_paths_info(self._repository, paths, repo_type="dataset")
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise PgolfError(f"{self._repository}: its checksums could not be fetched ({reason[:200]})") from error
        return {info.path: info.lfs.sha256 for info in infos if getattr(info, "lfs", None)}


def _named(entries: list[Any], name: str, kind: str) -> dict[str, Any]:
    for entry in entries:
        if isinstance(entry, dict) and entry.get("name") == name:
            return entry
    raise PgolfError(f"the hub's manifest lists no {kind} {name}")


def _manifest_digests(manifest: dict[str, Any]) -> dict[str, str]:
    """SHA-256 by path, wherever the manifest states one: {"files": [{"path", "sha256"}]} in any entry."""
    digests = {}
    for entry in [*manifest.get("datasets", []), *manifest.get("tokenizers", []), manifest]:
        for file in entry.get("files", []) if isinstance(entry, dict) else []:
            if isinstance(file, dict) and "path" in file and "sha256" in file:
                digests[f"{_ROOT}/{file['path']}"] = str(file["sha256"])
    return digests
