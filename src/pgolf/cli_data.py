"""The commands of `pgolf data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pgolf.cli_common import AsJson, TokenizerFile, epilog, flat_rows, print_result
from pgolf.cli_help import Verbs

data_app = typer.Typer(
    help="Prepare, fetch and inspect token shards.", cls=Verbs, no_args_is_help=True, rich_markup_mode=None
)


@data_app.command(
    "prepare",
    epilog=epilog(
        "pgolf data prepare --text books/*.txt --val-fraction 0.01 --vocab-size 1024 --out data/books",
        "pgolf data prepare --text train.jsonl.zst --val-text val.jsonl --tokenizer sp1024.model --out data/web",
    ),
)
def data_prepare(
    text: Annotated[list[Path], typer.Option("--text", help=".txt, .jsonl, .jsonl.zst or .parquet; several at once.")],
    out: Annotated[Path, typer.Option("--out", help="New folder for shards, tokenizer and manifest.")],
    val_text: Annotated[
        list[Path] | None, typer.Option("--val-text", help="Files of validation documents; several at once.")
    ] = None,
    val_fraction: Annotated[float, typer.Option("--val-fraction", help="Part of the documents held out.")] = 0.0,
    tokenizer: Annotated[Path | None, typer.Option("--tokenizer", help="Existing SentencePiece model.")] = None,
    vocab_size: Annotated[int | None, typer.Option("--vocab-size", help="Train a tokenizer of this size.")] = None,
    one_document: Annotated[bool, typer.Option("--one-document", help="A .txt file is one document.")] = False,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Processes; default: all cores.")] = None,
    as_json: AsJson = False,
) -> None:
    """Turn text into token shards, with a tokenizer and a manifest."""
    from pgolf.data.prepare import prepare
    from pgolf.progress import counting

    with counting("preparing") as progress:
        manifest = prepare(
            text,
            out,
            val_text=val_text or (),
            val_fraction=val_fraction,
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            one_document=one_document,
            workers=workers,
            progress=progress,
        )
    print_result(manifest, as_json, _split_rows(manifest["splits"]), title=f"{out}")


@data_app.command("fetch", epilog=epilog("pgolf data fetch fineweb-sp1024 --train-shards 10 --out data/fineweb-sp1024"))
def data_fetch(
    name: Annotated[str, typer.Argument(help="Published data set: fineweb-sp1024.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to fill.")] = Path("data"),
    train_shards: Annotated[int, typer.Option("--train-shards", min=0, help="Training shards to fetch.")] = 1,
    revision: Annotated[str | None, typer.Option("--revision", help="Commit of the repository on the hub.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fetch the official shards from the Hugging Face hub (needs the extra pgolf[hub]); resumable."""
    from pgolf.data.fetch import fetch

    folder = fetch(name, out, train_shards=train_shards, revision=revision)
    print_result({"folder": str(folder)}, as_json, [("folder", str(folder))], title=name)


@data_app.command("inspect", epilog=epilog("pgolf data inspect data/books", "pgolf data inspect data/books --json"))
def data_inspect(
    folder: Annotated[Path, typer.Argument(help="Data folder.")],
    tokenizer: TokenizerFile = None,
    as_json: AsJson = False,
) -> None:
    """Count tokens, documents and bytes; check headers and the overlap of training and validation."""
    from pgolf.data.inspect import inspect_dataset

    found = inspect_dataset(folder, tokenizer)
    print_result(found, as_json, flat_rows(found), title=str(folder))


def _split_rows(splits: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (
            name,
            f"{split['documents']:,} documents, {split['tokens']:,} tokens, {split['bytes_original']:,} bytes of text",
        )
        for name, split in splits.items()
    ]
