"""Where data is if nobody says."""

from __future__ import annotations

from pathlib import Path

from pgolf.runtime.files import read_json
from pgolf.runtime.run_files import PROVENANCE


def built_in_corpus(vocab_size: int) -> Path:
    """The data folder of the recipes' own corpus (``data.corpus = "python"``), below the current one."""
    return Path("data") / f"python-sp{vocab_size}"


def recorded_data(run: Path) -> Path | None:
    """The data folder that a run folder's ``provenance.json`` names; None where there is none."""
    path = run / PROVENANCE
    made = read_json(path) if path.is_file() else None
    data = made.get("data") if isinstance(made, dict) else None
    folder = data.get("folder") if isinstance(data, dict) else None
    return Path(folder) if isinstance(folder, str) else None
