"""Which files a user's paths stand for: files, folders of files, and what Hugging Face `datasets` saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pgolf.data.columns import import_pyarrow, shown
from pgolf.data.readers import COLUMNS, file_kind
from pgolf.errors import PgolfError
from pgolf.runtime.files import read_json
from pgolf.runtime.paths import read_error


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
            raise read_error(Path(error.filename or path), error) from error
        files += found
    return files


def _check(path: Path) -> None:
    kind, _ = file_kind(path)
    if not path.is_file():
        raise PgolfError(f"{path}: no such text file")
    path.open("rb").close()
    if kind in COLUMNS:
        import_pyarrow(path)


def _inside(folder: Path, splits: Sequence[str]) -> list[Path]:
    listing = folder / "dataset_dict.json"
    if listing.is_file():
        names = _listed(listing, "splits", "", "splits")
        chosen = next((name for name in splits if name in names), None)
        if chosen is None:
            found = f"has no split {' or '.join(splits)} (it has: {shown(names)})"
            raise PgolfError(f"{folder}: {found}; name a split's folder")
        folder /= chosen
        if not folder.is_dir():
            listed = f"absent, but {listing.name} beside it lists it"
            raise PgolfError(f"{folder}: {listed}; copy the folder again")
    state = folder / "state.json"
    if state.is_file():
        names = _listed(state, "_data_files", ".arrow", "Arrow files")
        if any(read_json(state).get(key) for key in ("_indices_files", "_indices_data_files")):
            found = "keeps its rows in another order than its files"
            raise PgolfError(f"{folder}: {found}; save it again with a newer datasets")
        return [folder / name for name in names]
    files = sorted(path for path in folder.iterdir() if path.is_file() and _is_text(path))
    if not files:
        kinds = ".txt, .jsonl, .json, .parquet"
        raise PgolfError(f"{folder}: holds no text files ({kinds}); name a folder that does")
    return files


def _listed(path: Path, key: str, ending: str, what: str) -> list[str]:
    """The names, or file names of entries, that a JSON file lists: things beside it with an ending."""
    found = read_json(path)
    try:
        names = [entry["filename"] if isinstance(entry, dict) else entry for entry in found[key]]
        sound = bool(names) and all(Path(name).name == name and name.endswith(ending) for name in names)
    except (KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise PgolfError(f"{path}: damaged; it has no list of {what}")
    return names


def _is_text(path: Path) -> bool:
    try:
        return bool(file_kind(path)) and not path.name.startswith(".")
    except PgolfError:
        return False
