"""Use a model and look into its artifact: `pgolf generate`, `serve`, `compress`, `decompress`, `import`,
`export`, `inspect`.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from pgolf.cli.app import AsJson, Overrides, verb
from pgolf.cli.tables import lines, print_columns, print_json, print_result, print_table
from pgolf.errors import Interrupted, PgolfError
from pgolf.runtime.terminal import output, plain, spelled

if TYPE_CHECKING:
    from pgolf.generate.model import TextStream

ModelFile = Annotated[Path, Option(help="Artifact, weights file or run folder.")]
ModelTokenizer = Annotated[
    Path | None,
    Option("--tokenizer", help="The model's tokenizer; default: beside it, or of its training data."),
]
Ttt = Annotated[bool, Option("--ttt", help="Let the model learn from the text as it goes; slower.")]
WithMemory = Annotated[
    bool,
    Option("--memory", help="Mix counts of the text so far with the model's predictions (docs/memory.md)."),
]
Threads = Annotated[
    int, Option(min=1, max=255, help="Of torch; recorded, since decompressing needs as many.")
]


@verb(
    "generate",
    'pgolf generate model.pgolf --tokenizer tokenizer.model --prompt "The function returns"',
    "pgolf generate runs/first --samples 3 --tokens 100 --temperature 1 --top-p 0.95 --seed 7",
    'pgolf generate model.pgolf --tokenizer tokenizer.model --prompt "The function returns" --memory',
    'echo "Once upon a time" | pgolf generate runs/first --prompt - --json',
)
def generate_verb(
    model: Annotated[Path, Argument(help="Artifact, weights file or run folder.")],
    prompt: Annotated[
        str, Option(metavar="TEXT", help="How the text begins; - reads it from standard input.")
    ] = "",
    tokens: Annotated[int, Option(help="Most tokens to write.")] = 200,
    temperature: Annotated[float, Option(help="0 always takes the likeliest token.")] = 0.8,
    top_k: Annotated[int | None, Option(help="Draw from so many of the likeliest tokens.")] = None,
    top_p: Annotated[
        float, Option(help="Draw from the likeliest tokens that have this probability together.")
    ] = 1.0,
    seed: Annotated[
        int | None, Option(help="The same one gives the same text; default: one by chance, which is printed.")
    ] = None,
    samples: Annotated[int, Option(min=1, help="Texts to write, with this seed and the next.")] = 1,
    stop: Annotated[
        list[str] | None, Option(metavar="TEXT", help="End before this text; repeatable.")
    ] = None,
    past_document: Annotated[
        bool, Option("--past-document", help="Go on where the model ends its document.")
    ] = False,
    memory: WithMemory = False,
    tokenizer: ModelTokenizer = None,
    as_json: AsJson = False,
) -> None:
    """Write on from a prompt, or a new document; prints prompt and text as they come. Computes on the CPU.

    A text ends after --tokens tokens or where the model ends its document. On a terminal, characters that it
    could act on are shown as U+FFFD; a file or a pipe gets them as they are. Ctrl-C ends it with what is
    there.
    """
    from pgolf.generate.model import Model
    from pgolf.generate.sampling import drawn_seed

    beginning = _from_standard_input() if prompt == "-" else prompt
    opened = Model(model, tokenizer)
    tells = seed is None and not as_json and temperature > 0
    seed = drawn_seed() if seed is None else seed
    started = time.perf_counter()
    written: list[dict[str, Any]] = []
    for number in range(seed, seed + samples):
        stream = opened.stream(
            beginning,
            max_tokens=tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=number,
            stop=stop or (),
            past_document=past_document,
            memory=memory,
        )
        if tells and number == seed:
            print(f"seed {seed} (--seed {seed} writes the same)", file=sys.stderr, flush=True)
        if not as_json:
            place = f"--- sample {number - seed + 1} of {samples}, seed {number} ---\n"
            _write((place if samples > 1 else "") + beginning)
        text, interrupted = _follow(stream, shown=not as_json)
        ended = "interrupted" if interrupted else stream.ended
        written.append({"seed": number, "text": text, "tokens": len(stream.tokens), "ended": ended})
        if not as_json:
            _write("\n" if samples == 1 or interrupted else "\n\n")
        if interrupted or output.lost is not None:
            break
    count, seconds = sum(sample["tokens"] for sample in written), time.perf_counter() - started
    if as_json:
        speed = {"seconds": seconds, "tokens_per_second": count / seconds}
        print_json({"model": str(model), "prompt": beginning, "samples": written, **speed})
    if written[-1]["ended"] == "interrupted":
        raise Interrupted(f"stopped after {count} tokens")
    if sys.stderr.isatty() and not as_json:
        print(f"{count} tokens, {count / seconds:,.0f} per second", file=sys.stderr)


def _follow(stream: TextStream, shown: bool) -> tuple[str, bool]:
    """The whole text, printed as it comes if ``shown``, and whether Ctrl-C ended it."""
    parts: list[str] = []
    try:
        for part in stream:
            parts.append(part)
            if shown:
                _write(part)
            if output.lost is not None:
                break  # Whoever read it has had enough, or its disk is full.
    except KeyboardInterrupt:
        return "".join(parts), True
    return "".join(parts), False


def _write(text: str) -> None:
    """Print text at once: harmless on a terminal, as it is elsewhere."""
    out = sys.stdout
    out.write(spelled(plain(text, keep="\n\t") if out.isatty() else text, out.encoding))
    out.flush()


def _from_standard_input() -> str:
    if sys.stdin is None:
        raise PgolfError("--prompt -: standard input is closed; give the text itself, or a file by < FILE")
    try:
        text = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise PgolfError(f"--prompt -: standard input is no UTF-8 text (byte {error.start + 1})") from error
    # The newline that echo and editors put at the end is not meant.
    return text.removesuffix("\n").removesuffix("\r")


@verb("serve", "pgolf serve runs/first", "pgolf serve model.pgolf --tokenizer tokenizer.model --port 0")
def serve_verb(
    model: Annotated[Path, Argument(help="Artifact, weights file or run folder.")],
    port: Annotated[int, Option(min=0, max=65535, help="Where to listen; 0 takes a free one.")] = 8000,
    host: Annotated[str, Option(help="Address or name of this machine to listen at.")] = "127.0.0.1",
    mode: Annotated[
        str | None, Option(help="sliding: the model alone; ttt: test-time training and memory too.")
    ] = None,
    max_tokens: Annotated[int, Option(min=1, help="Most tokens of an answer.")] = 2048,
    max_body: Annotated[int, Option(min=1, help="Most bytes of a request.")] = 1 << 16,
    concurrency: Annotated[
        int, Option(min=1, help="Requests at work or waiting at a time; more are refused.")
    ] = 8,
    tokenizer: ModelTokenizer = None,
) -> None:
    """Try a model in a browser: what it writes and what a text costs it, token by token. Computes on the CPU.

    Programs find OpenAI's completions at /v1/completions (docs/serve.md). Needs the extra pgolf[serve]. Only
    this machine is served, unless --host says otherwise; there is no password. Ctrl-C ends it.
    """
    from pgolf.runtime.progress import tell
    from pgolf.serve.job import serve
    from pgolf.serve.worker import Limits

    def ready(address: str) -> None:
        print(address, flush=True)

    if mode not in (None, "sliding", "ttt"):
        raise PgolfError(f"--mode {mode}: use sliding or ttt")
    if host in ("", "0.0.0.0", "::"):
        name = "give the address or the name by which others reach this machine"
        raise PgolfError(f"--host {host or '(empty)'}: {name}; requests by any other are refused")
    if host not in ("127.0.0.1", "localhost", "::1"):
        tell(f"warning: whoever can reach {host} can use the model; there is no password")
    try:
        serve(model, tokenizer, mode, host, port, Limits(max_body, max_tokens, concurrency), tell, ready)
    except KeyboardInterrupt:
        tell("stopped")


@verb(
    "compress",
    "pgolf compress book.txt --model model.pgolf --tokenizer tokenizer.model --out book.pgz",
    "pgolf compress book.txt --model runs/first/artifact.pgolf --ttt --memory --out book.pgz --json",
)
def compress_verb(
    file: Annotated[Path, Argument(help="Any file; text like the model's training text shrinks most.")],
    model: ModelFile,
    out: Annotated[Path, Option("--out", "-o", help="Compressed file to write.")],
    tokenizer: ModelTokenizer = None,
    ttt: Ttt = False,
    memory: WithMemory = False,
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
        result = compress_file(file, out, model, tokenizer, ttt, threads, progress, memory=memory)
    print_result(result, as_json, _coded_rows(result), title=str(out))


_CODED = {
    "original": "{bytes:,} bytes, {tokens:,} tokens",
    "compressed": "{compressed_bytes:,} bytes, {bits_per_byte:.3f} bits per byte",
    "code of the text": "{payload_bytes:,} bytes; by its score {score_bytes:,.0f}",
    "with": "{how}",
    "time": "{seconds:.1f} s, {bytes_per_second:,.0f} bytes per second",
}


def _coded_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    parts = [name for name, used in (("test-time training", "ttt"), ("memory", "memory")) if result[used]]
    threads = f"{result['threads']} thread{'s' * (result['threads'] != 1)}"
    more = {"how": ", ".join([*parts, threads]), "score_bytes": result["ledger_bits"] / 8}
    return lines(result | more, _CODED)


@verb(
    "decompress",
    "pgolf decompress book.pgz --model model.pgolf --tokenizer tokenizer.model --out book.txt",
    "pgolf decompress book.pgz --model runs/first/artifact.pgolf --out book.txt --json",
)
def decompress_verb(
    file: Annotated[Path, Argument(help="What `pgolf compress` wrote.")],
    model: ModelFile,
    out: Annotated[Path, Option("--out", "-o", help="File to write.")],
    tokenizer: ModelTokenizer = None,
    as_json: AsJson = False,
) -> None:
    """Restore a compressed file; nothing is written unless it equals the original."""
    from pgolf.codec.job import decompress_file
    from pgolf.runtime.progress import counting

    with counting("decompressing") as progress:
        result = decompress_file(file, out, model, tokenizer, progress)
    print_result(result, as_json, _coded_rows(result), title=str(out))


@verb("import", "pgolf import final_model.int6.ptz --recipe seed_644 --out imported.safetensors")
def import_verb(
    source: Annotated[Path, Argument(help="A reference's .ptz artifact, .pt or .safetensors weights.")],
    recipe: Annotated[str, Option(help="The recipe that describes it.")],
    out: Annotated[Path, Option("--out", "-o", help="Weights file to write.")],
    overrides: Overrides = None,
    tokenizer: Annotated[
        Path | None, Option(help="Its tokenizer, so that evaluation can check the data.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bring the weights of a reference system in; never executes a pickle."""
    from pgolf.runs.pipeline import import_job

    result = import_job(source, recipe, overrides or [], out, tokenizer)
    rows = lines(result, {"weights": "{weights}", "parameters": "{parameters:,} in {tensors:,} tensors"})
    print_result(result, as_json, rows, title=str(out))


_EXPORTED = {"folder": "{folder}", "parameters": "{parameters:,}"}


@verb(
    "export",
    "pgolf export runs/first --format hf -o models/first",
    "pgolf export model.pgolf --tokenizer tokenizer.model --format onnx -o first-onnx --json",
)
def export_verb(
    model: Annotated[Path, Argument(help="Artifact, weights file or run folder.")],
    out: Annotated[Path, Option("--out", "-o", help="Folder to make.")],
    form: Annotated[str, Option("--format", help="hf: for transformers; onnx: for onnxruntime.")] = "hf",
    tokenizer: ModelTokenizer = None,
    as_json: AsJson = False,
) -> None:
    """Write a model as a folder that transformers or onnxruntime open without pgolf.

    That is the model alone, without test-time training and memory. The folder has its tokenizer, and a README
    that says how to use it.
    """
    from pgolf.export.folder import export

    result = export(model, out, form, tokenizer)
    rows = lines(result, _EXPORTED)
    rows += [(name, f"{size:,} bytes") for name, size in result["files"].items()]
    print_result(result, as_json, rows, title=str(out))


_ORIGIN = {
    "packed by": "pgolf {pgolf}",
    "scheme": "{scheme}",
    "grid": "{grid}",
    "calibrated on": "{calibration[tokens]:,} tokens ({calibration[source]})",
    "memory chosen on": "{memory[held_out][tokens]:,} tokens of held-out training text",
}


@verb("inspect", "pgolf inspect model.pgolf", "pgolf inspect model.pgolf --codes --picture codes.png --json")
def inspect_verb(
    file: Annotated[Path, Argument(help="Artifact.")],
    codes: Annotated[
        bool, Option("--codes", help="Decode them: their range and entropy, and bytes by group of tensors.")
    ] = False,
    picture: Annotated[
        Path | None, Option(help="Draw codes and bytes by group as a PNG; decodes as --codes does.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what is in an artifact: sizes, provenance, and shape and bits of every tensor.

    The file's checksums are verified, those of the decoded tensors only with --codes or --picture.
    """
    from pgolf.compress.inspect import inspect_artifact
    from pgolf.report import histogram

    found = inspect_artifact(file, codes or picture is not None)
    if picture is not None:
        histogram.draw_codes(found, picture)
    if as_json:
        print_json(found.to_json())
        return
    rows = histogram.tensor_rows(found, blocks=histogram.blocks_for(sys.stdout.encoding))
    columns = histogram.HEADER_COLUMNS if found.coded is None else histogram.TENSOR_COLUMNS
    print_columns(columns, rows, str(file), left=("histogram",), drop=histogram.TENSOR_DROP)
    if found.coded is not None:
        title = "bytes of the file by group of tensors"
        print_columns(histogram.GROUP_COLUMNS, histogram.group_rows(found), title, drop=histogram.GROUP_DROP)
    print_table([*histogram.summary_rows(found), *lines(found.artifact.origin, _ORIGIN)], title="artifact")
