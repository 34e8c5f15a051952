"""What the verbs share: options, and the checks of paths."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from typer import Option

from pgolf.runtime.paths import path_error

Overrides = Annotated[
    list[str] | None, Option("--set", metavar="KEY=VALUE", help="Change one key of the recipe; repeatable.")
]
DataFolder = Annotated[
    Path | None, Option(help="Prepared folder, or a bare folder of *_train_*.bin and *_val_*.bin.")
]
TokenizerFile = Annotated[Path | None, Option(help="SentencePiece model, where the data folder holds none.")]
DeviceName = Annotated[str | None, Option(help="cpu, cuda or cuda:N; default: CUDA if there.")]
JsonFile = Annotated[Path | None, Option("--out", help="Also write the JSON here.")]
AsJson = Annotated[bool, Option("--json", help="Print one JSON object on standard output.")]


@contextmanager
def paths_are_mistakes() -> Iterator[None]:
    """Inside, what the system says about a path, and a name or text that is no UTF-8, is a ``PgolfError``."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        if (mistake := path_error(error)) is None:
            raise
        raise mistake from error


def check_data_paths(data: Path | None, tokenizer: Path | None) -> None:
    """For jobs that may not open what they are given: a misspelled name is a mistake all the same.

    Raises:
        PgolfError: the folder or the file is not there.
    """
    from pgolf.data.dataset import check_folder
    from pgolf.data.tokenizer import check_model

    if data is not None:
        check_folder(data)
    if tokenizer is not None:
        check_model(tokenizer)
