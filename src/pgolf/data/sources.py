"""Which files a user's paths stand for: files, folders of files, and folders that Hugging Face `datasets`
saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pgolf.data.columns import import_pyarrow
from pgolf.data.readers import file_kind
from pgolf.data.records import shown
from pgolf.errors import PgolfError
from pgolf.runtime.files import read_json


def find_sources(paths: Sequence[Path], splits: Sequence[str] = ("train",)) -> list[Path]:
    """The text files behind some paths, in order; fails before any work.

    A folder that ``datasets.save_to_disk`` made stands for its Arrow files; one with several splits for the
    first of ``splits`` that it has. Any other folder stands for the text files that lie in it (not deeper),
    by name.

    Raises:
        PgolfError: a path that is absent, of an unknown kind, without text files, or needs a missing package.
    """
    files: list[Path] = []
    for path in paths:
        try:
            found = _inside(path, splits) if path.is_dir() else [path]
            for file in found:
                _check(file)
        except OSError as error:
            raise PgolfError(
                f"{error.filename or path}: cannot be read ({error.strerror or error})"
            ) from error
        files += found
    return files


def _check(path: Path) -> None:
    kind, _ = file_kind(path)
    if not path.is_file():
        raise PgolfError(f"{path}: no such text file")
    with path.open("rb"):
        pass
    if kind in (".parquet", ".arrow"):
        import_pyarrow(path)


def _inside(folder: Path, splits: Sequence[str]) -> list[Path]:
    if (folder / "dataset_dict.json").is_file():
        folder = _split(folder, splits)
        if not folder.is_dir():
            raise PgolfError(
                f"{folder}: absent, but dataset_dict.json beside it lists it; copy the folder again"
            )
    if (folder / "state.json").is_file():
        return _saved(folder)
    files = sorted(path for path in folder.iterdir() if path.is_file() and _is_text(path))
    if not files:
        raise PgolfError(
            f"{folder}: holds no text files (.txt, .jsonl, .json, .parquet); name a folder that does"
        )
    return files


def _split(folder: Path, splits: Sequence[str]) -> Path:
    found = read_json(folder / "dataset_dict.json")
    names = found.get("splits") if isinstance(found, dict) else None
    if not isinstance(names, list) or not all(
        isinstance(name, str) and Path(name).name == name for name in names
    ):
        raise PgolfError(f"{folder / 'dataset_dict.json'}: damaged; it has no list of splits")
    chosen = next((name for name in splits if name in names), None)
    if chosen is None:
        raise PgolfError(
            f"{folder}: has no split {' or '.join(splits)} (it has: {shown(names)}); name a split's folder"
        )
    return folder / chosen


def _saved(folder: Path) -> list[Path]:
    state = read_json(folder / "state.json")
    try:
        names = [entry["filename"] for entry in state["_data_files"]]
        whole = all(Path(name).name == name and name.endswith(".arrow") for name in names)
    except (KeyError, TypeError):
        whole = False
    if not whole or not names:
        raise PgolfError(f"{folder / 'state.json'}: damaged; it has no list of Arrow files")
    if any(state.get(key) for key in ("_indices_files", "_indices_data_files")):
        raise PgolfError(
            f"{folder}: keeps its rows in another order than its files; save it again with a newer datasets"
        )
    return [folder / name for name in names]


def _is_text(path: Path) -> bool:
    try:
        return bool(file_kind(path)) and not path.name.startswith(".")
    except PgolfError:
        return False
