"""`pgolf generate`: text from a model, as it comes."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgolf.cli.codec import ModelTokenizer
from pgolf.cli.common import AsJson, print_json
from pgolf.errors import Interrupted, PgolfError
from pgolf.runtime.terminal import output, plain, spelled

if TYPE_CHECKING:
    from pgolf.generate.model import TextStream

GENERATE_EXAMPLES = (
    'pgolf generate model.pgolf --tokenizer tokenizer.model --prompt "The function returns"',
    "pgolf generate runs/first --samples 3 --tokens 100 --temperature 1 --top-p 0.95 --seed 7",
    'echo "Once upon a time" | pgolf generate runs/first --prompt - --json',
)


def generate_command(
    model: Annotated[Path, typer.Argument(help="Artifact, weights file or run folder.")],
    prompt: Annotated[
        str,
        typer.Option("--prompt", metavar="TEXT", help="How the text begins; - reads it from standard input."),
    ] = "",
    tokens: Annotated[int, typer.Option("--tokens", help="Most tokens to write.")] = 200,
    temperature: Annotated[
        float, typer.Option("--temperature", help="0 always takes the likeliest token.")
    ] = 0.8,
    top_k: Annotated[
        int | None, typer.Option("--top-k", help="Draw from so many of the likeliest tokens.")
    ] = None,
    top_p: Annotated[
        float,
        typer.Option("--top-p", help="Draw from the likeliest tokens that have this probability together."),
    ] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="The same one gives the same text.")] = 0,
    samples: Annotated[
        int, typer.Option("--samples", min=1, help="Texts to write, with this seed and the next.")
    ] = 1,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", metavar="TEXT", help="End before this text; repeatable.")
    ] = None,
    past_document: Annotated[
        bool, typer.Option("--past-document", help="Go on where the model ends its document.")
    ] = False,
    tokenizer: ModelTokenizer = None,
    as_json: AsJson = False,
) -> None:
    """Write on from a prompt, or a new document; prints prompt and text as they come. Computes on the CPU.

    A text ends after --tokens tokens or where the model ends its document. On a terminal, characters that it
    could act on are shown as U+FFFD; a file or a pipe gets them as they are. Ctrl-C ends it with what is
    there.
    """
    from pgolf.generate.model import Model

    beginning = _from_standard_input() if prompt == "-" else prompt
    opened = Model(model, tokenizer)
    started = time.perf_counter()
    written: list[dict[str, Any]] = []
    for index in range(samples):
        stream = opened.stream(
            beginning,
            max_tokens=tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed + index,
            stop=stop or (),
            past_document=past_document,
        )
        if not as_json:
            heading = f"--- sample {index + 1} of {samples}, seed {seed + index} ---\n" if samples > 1 else ""
            _write(heading + beginning)
        text, interrupted = _follow(stream, shown=not as_json)
        ended = "interrupted" if interrupted else stream.ended
        written.append({"seed": seed + index, "text": text, "tokens": len(stream.tokens), "ended": ended})
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
    content = sys.stdin.buffer.read()
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise PgolfError(f"--prompt -: standard input is no UTF-8 text (byte {error.start + 1})") from error
    # The newline that echo and editors put at the end is not meant.
    return text.removesuffix("\n").removesuffix("\r")
