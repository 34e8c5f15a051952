"""The verbs of `pgolf data`."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from typer import Argument, Option

from pgolf.cli.app import AsJson, TokenizerFile, group, verb
from pgolf.cli.tables import lines, print_columns, print_json, print_result, print_table
from pgolf.errors import Interrupted
from pgolf.report.content import shown
from pgolf.runtime.processes import handling

if TYPE_CHECKING:
    from pgolf.data.operators import Transform

data_group = group("data", "Prepare, fetch and inspect token shards.")


@verb(
    "prepare",
    "pgolf data prepare --text books/*.txt --val-fraction 0.1 --vocab-size 512 --out data/books",
    "pgolf data prepare --text notes.txt --split blank-lines --val-fraction 0.1 --vocab-size 512 "
    "--out data/notes",
    "pgolf data prepare --text books/*.txt --val-fraction 0.1 --vocab-size 512 --transform caseops "
    "--out data/books-caseops",
    "pgolf data prepare --text train.jsonl.zst --val-text val.jsonl --tokenizer sp1024.model --out data/web",
    of=data_group,
)
def prepare_verb(
    text: Annotated[
        list[Path],
        Option(
            help="Files (.txt, .jsonl, .json, also with .gz or .zst; .parquet, .arrow) or folders; "
            "several at once."
        ),
    ],
    out: Annotated[Path, Option("--out", "-o", help="New folder for shards, tokenizer and manifest.")],
    val_text: Annotated[
        list[Path] | None, Option(help="Files of validation documents; several at once.")
    ] = None,
    val_fraction: Annotated[float, Option(help="Part of the documents held out.")] = 0.0,
    tokenizer: Annotated[
        Path | None, Option(help="Existing SentencePiece model, tokenizer.json or tiktoken encoding.")
    ] = None,
    vocab_size: Annotated[int | None, Option(help="Train a tokenizer of this size.")] = None,
    transform: Annotated[
        str, Option(help="caseops: train one that spells capital letters by operators; none: do not.")
    ] = "none",
    split: Annotated[
        str, Option(help="files: a .txt file is a document; blank-lines: they separate its documents.")
    ] = "files",
    text_column: Annotated[
        str, Option(help="Field or column with the text; nested ones as record.body.")
    ] = "text",
    bad_documents: Annotated[
        str, Option(help="error: one ends the work; skip: they are left out and counted.")
    ] = "error",
    allow_added_bytes: Annotated[
        bool, Option("--allow-added-bytes", help="Even if normalisation makes the validation text longer.")
    ] = False,
    workers: Annotated[int | None, Option(min=1, help="Processes; default: all cores.")] = None,
    as_json: AsJson = False,
) -> None:
    """Turn text into token shards, with a tokenizer and a manifest."""
    with _all_or_nothing():
        from pgolf.data.prepare import prepare
        from pgolf.data.readers import Reading
        from pgolf.runtime.progress import counting

        with counting("preparing") as progress:
            manifest = prepare(
                text,
                out,
                val_text=val_text or (),
                val_fraction=val_fraction,
                tokenizer=tokenizer,
                vocab_size=vocab_size,
                transform=cast("Transform", transform),
                reading=Reading(split, text_column, bad_documents),
                allow_added_bytes=allow_added_bytes,
                workers=workers,
                progress=progress,
            )
    print_result(manifest, as_json, _rows(manifest), title=str(out))


@verb(
    "fetch",
    "pgolf data fetch fineweb-sp1024 --train-shards 10 --out data/fineweb-sp1024",
    "pgolf data fetch fineweb-sp8192-caseops --train-shards 10 --out data/fineweb-caseops",
    of=data_group,
)
def fetch_verb(
    name: Annotated[
        str,
        Argument(help="Data set: fineweb-sp1024, fineweb-sp4096, fineweb-sp8192 or fineweb-sp8192-caseops."),
    ],
    out: Annotated[Path, Option("--out", "-o", help="Folder to fill.")] = Path("data"),
    train_shards: Annotated[int, Option(min=0, help="Training shards to fetch.")] = 1,
    revision: Annotated[str | None, Option(help="Commit of the repository on the hub.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fetch the official shards from the Hugging Face hub (needs the extra pgolf[hub]); resumable."""
    from pgolf.data.fetch import fetch

    folder = fetch(name, out, train_shards=train_shards, revision=revision)
    print_result({"folder": str(folder)}, as_json, [("folder", str(folder))], title=name)


@verb("inspect", "pgolf data inspect data/books", "pgolf data inspect data/books --json", of=data_group)
def inspect_verb(
    folder: Annotated[Path, Argument(help="Data folder.")],
    tokenizer: TokenizerFile = None,
    as_json: AsJson = False,
) -> None:
    """Count tokens, documents and bytes; check headers and the overlap of training and validation.

    Exits with status 1 if a shard is damaged or missing, bytes are not counted right, a side-car does not
    fit, or normalisation makes the validation text too long.
    """
    from pgolf.data.inspect import inspect_dataset

    found = inspect_dataset(folder, tokenizer)
    if as_json:
        print_json(found)
    else:
        _print_inspected(found, folder)
    if found["errors"]:
        raise typer.Exit(1)


_COUNTS = {
    "shards": "shards",
    "tokens": "tokens",
    "documents": "documents",
    "bytes": "bytes of text",
    "bytes_per_token": "bytes per token",
    "normalisation": "normalisation",
}
_FACTS = {
    "tokenizer": "{tokenizer[vocab_size]:,} pieces, transform {tokenizer[transform]}, SHA-256 {digest}",
    "bytes per target": "{byte_counts[evidence]}",
    "in both splits": "{overlap[documents]:,} of {val[documents]:,} validation documents",
}


def _print_inspected(found: dict[str, Any], folder: Path) -> None:
    sides = [found[split] for split in ("train", "val")]
    rows = [(name, *(shown(side.get(key), 3) for side in sides)) for key, name in _COUNTS.items()]
    print_columns(("", "training", "validation"), rows, str(folder))
    wrong = [(f"WRONG: {name}", reason) for name, reason in found["errors"].items()]
    facts = lines(found | {"digest": found["tokenizer"]["sha256"][:16]}, _FACTS)
    print_table([*facts, *wrong], "not usable as it is" if wrong else "in order")


@contextlib.contextmanager
def _all_or_nothing() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the work alike: no half-made folder stays, and one line says so."""
    try:
        with handling(signal.default_int_handler, signal.SIGTERM):
            yield
    except KeyboardInterrupt:
        raise Interrupted("interrupted; nothing was written") from None


def _rows(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    from pgolf.data.dataset import normalisation_of

    documents, skipped = manifest["documents"], manifest["skipped_documents"]
    median = f"median {documents['median_characters']:,} characters"
    rows = [("text", f"{_documents(documents['count'])}, {median}")]
    if (transform := manifest["tokenizer"]["transform"]) != "none":
        rows.append(("transform", transform))
    if skipped:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in skipped.items())
        rows.append(("left out", f"{_documents(sum(skipped.values()))}: {reasons}"))
    for name, split in manifest["splits"].items():
        counts = f"{split['tokens']:,} tokens, {split['bytes_original']:,} bytes of text"
        normalised = f"normalisation {normalisation_of(split)}"
        rows.append((name, f"{_documents(split['documents'])}, {counts}; {normalised}"))
    return rows


def _documents(count: int) -> str:
    return f"{count:,} document{'s' if count != 1 else ''}"
