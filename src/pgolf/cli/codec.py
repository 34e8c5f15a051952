"""`pgolf compress`, `pgolf decompress` and `pgolf bench compressors`: a model as a lossless compressor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pgolf.cli.common import AsJson, flat_rows, print_json, print_result
from pgolf.cli.tables import print_columns

COMPRESS_EXAMPLES = (
    "pgolf compress book.txt --model model.pgolf --tokenizer tokenizer.model --out book.pgz",
    "pgolf compress book.txt --model runs/first/artifact.pgolf --ttt --out book.pgz --json",
)
DECOMPRESS_EXAMPLES = (
    "pgolf decompress book.pgz --model model.pgolf --tokenizer tokenizer.model --out book.txt",
    "pgolf decompress book.pgz --model runs/first/artifact.pgolf --out book.txt --json",
)
BENCH_EXAMPLES = (
    "pgolf bench compressors book.txt --model model.pgolf --tokenizer tokenizer.model",
    "pgolf bench compressors *.txt --model runs/first/artifact.pgolf --ttt --json",
)

Model = Annotated[Path, typer.Option("--model", help="Artifact, weights file or run folder.")]
ModelTokenizer = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer", help="The model's SentencePiece model; default: beside it, or of its training data."
    ),
]
Ttt = Annotated[bool, typer.Option("--ttt", help="Let the model learn from the text as it goes; slower.")]
Threads = Annotated[
    int,
    typer.Option("--threads", min=1, max=255, help="Of torch; recorded, since decompressing needs as many."),
]


def compress_command(
    file: Annotated[Path, typer.Argument(help="Any file; text like the model's training text shrinks most.")],
    model: Model,
    out: Annotated[Path, typer.Option("--out", help="Compressed file to write.")],
    tokenizer: ModelTokenizer = None,
    ttt: Ttt = False,
    threads: Threads = 1,
    as_json: AsJson = False,
) -> None:
    """Compress a file without loss, with a model's predictions and a range coder. Computes on the CPU.

    The file's size is what strict evaluation of the same text says, plus about 120 bytes. It can be
    decompressed with the same model and tokenizer, on the same kind of machine with the same torch; elsewhere
    that is noticed.
    """
    from pgolf.codec.job import compress_file
    from pgolf.runtime.progress import counting

    with counting("compressing") as progress:
        result = compress_file(file, out, model, tokenizer, ttt, threads, progress)
    print_result(result, as_json, flat_rows(result), title=str(out))


def decompress_command(
    file: Annotated[Path, typer.Argument(help="What `pgolf compress` wrote.")],
    model: Model,
    out: Annotated[Path, typer.Option("--out", help="File to write.")],
    tokenizer: ModelTokenizer = None,
    as_json: AsJson = False,
) -> None:
    """Restore a compressed file; nothing is written unless it equals the original."""
    from pgolf.codec.job import decompress_file
    from pgolf.runtime.progress import counting

    with counting("decompressing") as progress:
        result = decompress_file(file, out, model, tokenizer, progress)
    print_result(result, as_json, flat_rows(result), title=str(out))


def bench_compressors_command(
    files: Annotated[list[Path], typer.Argument(help="Files to compress.")],
    model: Model,
    tokenizer: ModelTokenizer = None,
    ttt: Ttt = False,
    threads: Threads = 1,
    out: Annotated[Path | None, typer.Option("--out", help="Also write the JSON here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compress files with general compressors at their strongest and with a model, and unpack them again."""
    from pgolf.codec.compare import compare_files
    from pgolf.runtime.progress import counting
    from pgolf.runtime.writing import write_json

    with counting("compressing") as progress:
        found = compare_files(files, model, tokenizer, ttt=ttt, threads=threads, progress=progress)
    if out is not None:
        write_json(out, found)
    if as_json:
        print_json(found)
        return
    header = ("compressor", "bytes", "with model", "bits per byte", "encode", "decode")
    forms = (
        ("bytes", "{:,}"),
        ("bytes_with_model", "{:,}"),
        ("bits_per_byte", "{:.3f}"),
        ("encode_seconds", "{:.2f} s"),
        ("decode_seconds", "{:.2f} s"),
    )
    for entry in found:
        rows = [
            (
                f"{row['compressor']} ({row['note']})" if row["note"] else row["compressor"],
                *("-" if row[key] is None else form.format(row[key]) for key, form in forms),
            )
            for row in entry["compressors"]
        ]
        title = f"{entry['file']}: {entry['bytes']:,} bytes"
        print_columns(header, rows, title, drop=("encode", "decode", "bits per byte", "with model"))
