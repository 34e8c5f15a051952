"""Data folders that a recipe's job makes for itself: of text files, or of a corpus that every Python has.

The latter is the English prose about Python in its own library, without a download.

    pydoc's topics, docstrings, block comments -> paragraphs -> only prose, each once -> documents

Sources are parsed, never imported or run. Doctests, grammars, tables, signatures and code are left out.
"""

from __future__ import annotations

import ast
import hashlib
import platform
import re
import sysconfig
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pgolf.data.dataset import MANIFEST, TOKENIZER
from pgolf.data.operators import Transform
from pgolf.data.prepare import prepare, write_dataset
from pgolf.data.readers import find_sources
from pgolf.data.vocabulary import train_tokenizer
from pgolf.errors import PgolfError
from pgolf.runtime.files import read_json, sha256_file
from pgolf.runtime.locks import held
from pgolf.runtime.writing import new_folder

CORPUS_VERSION = 1
"""Raised whenever the same Python would give other documents."""

# Third-party packages, tests, and what is no library of Python 3.
_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "pydoc_data"}
_DOCUMENT_CHARACTERS = 8000
_COMMENTS = re.compile(r"(?:^[ \t]*#.*\n)+", re.MULTILINE)
_WORD = re.compile(r"[A-Za-z']+")
_SMALL_WORD = re.compile(
    r"\b(?:an?|and|are|as|at|be|but|by|can|do|does|for|from|has|have|if|in|is|it|its|may|must|not|of|on|or|should|"
    r"so|that|the|their|then|there|these|they|this|to|was|when|where|which|will|with|you)\b",
    re.IGNORECASE,
)


def python_corpus(library: Path | None = None) -> list[str]:
    """The documents: one for each pydoc topic and each library module, long ones in several parts.

    A document is paragraphs in the order of the source, each on one line, with a blank line between them.
    A paragraph that occurred before is left out. Documents are ordered by their SHA-256, which mixes topics
    and modules as training wants it; the same Python gives the same documents in the same order. The
    ``library`` is a folder; default the running Python's. One without sources is a ``PgolfError``.
    """
    library = library or Path(sysconfig.get_path("stdlib"))
    seen: set[str] = set()
    documents: list[str] = []
    for source in _sources(library):
        fresh = [paragraph for paragraph in dict.fromkeys(source) if paragraph not in seen]
        seen.update(fresh)
        documents += _cut(fresh)
    if not documents:
        missing = "this Python has no library sources to take text from"
        raise PgolfError(f"{library}: {missing}; pass --data DIR instead")
    return sorted(documents, key=_digest)


def built_in_corpus(vocab_size: int, transform: Transform = "none") -> Path:
    """The data folder of the recipes' own corpus (``data.corpus = "python"``), below the current one."""
    return Path("data") / _folder_name("python", vocab_size, transform)


def prepare_python_corpus(
    out: Path,
    vocab_size: int,
    validation_fraction: float,
    note: Callable[[str], None] = lambda line: None,
    transform: Transform = "none",
) -> Path:
    """Make a data folder of ``python_corpus``, with a tokenizer trained on its training part; return ``out``.

    The validation documents are those whose SHA-256 is smallest, as many as reach ``validation_fraction``
    (above 0, below 1) of the corpus' characters. A folder made before with the same Python and arguments is
    kept, another corpus in its place is replaced, anything else there is a ``PgolfError``. ``note`` hears of
    another process that makes the same folder and is waited for.
    """
    origin = {
        "name": "python",
        "version": CORPUS_VERSION,
        "python": platform.python_version(),
        "vocab_size": vocab_size,
        "validation_fraction": validation_fraction,
    } | ({} if transform == "none" else {"transform": transform})

    def make(replace: bool) -> None:
        with new_folder(out, replace=replace) as folder:
            documents = _split(python_corpus(), validation_fraction)
            training = (text for split, text in documents if split == "train")
            train_tokenizer(training, vocab_size, folder / TOKENIZER, transform)
            write_dataset(folder, documents, extra={"corpus": origin})

    return _kept_or_made(out, origin, make, note)


def data_given(
    data: Path | None, text: Sequence[Path] | None, val_text: Sequence[Path] | None, tokenizer: Path | None
) -> Path | Texts | None:
    """The data of a job, a folder or texts; a ``PgolfError`` if both are given, or validation text alone."""
    if text and data is not None:
        raise PgolfError("--data and --text exclude each other; give one of them")
    if val_text and not text:
        raise PgolfError("--val-text: belongs to --text; name the training text too")
    return Texts(tuple(text), tuple(val_text or ()), tokenizer) if text else data


class Texts(NamedTuple):
    """Text to make a job's data of, as ``prepare`` takes it."""

    text: Sequence[Path]
    """Training files and folders."""
    val_text: Sequence[Path] = ()
    """The same of validation documents; none: a part of the training documents is held out."""
    tokenizer: Path | None = None
    """The file of one to use; none: one is trained on the training documents."""

    def folder(self, vocab_size: int, transform: Transform = "none") -> Path:
        """Where its data folder is kept, below the current one; PgolfError where there is no such file.

        It is named after the file, or the folder of several; a digest of all paths keeps equal names apart.
        """
        files = find_sources(self.text)
        tokenizer = () if self.tokenizer is None else (self.tokenizer,)
        paths = "\n".join(str(path.resolve()) for path in (*files, *self.val_text, *tokenizer))
        named = files[0] if len(files) == 1 else files[0].resolve().parent
        name = f"{named.name.split('.')[0]}-{_digest(paths).hex()[:6]}"
        return Path("data") / _folder_name(name, vocab_size, transform)

    def prepare(
        self,
        out: Path,
        vocab_size: int,
        validation_fraction: float,
        note: Callable[[str], None] = lambda line: None,
        transform: Transform = "none",
    ) -> Path:
        """Make its data folder and return ``out``.

        A folder made before of the same files is kept, as in ``prepare_python_corpus``.
        """
        found = [*find_sources(self.text), *find_sources(self.val_text, ("validation", "test"))]
        files = [[str(path), sha256_file(path)] for path in found]
        fraction = 0.0 if self.val_text else validation_fraction
        origin: dict[str, Any] = {"name": "texts", "files": files, "vocab_size": vocab_size}
        origin |= {"validation_fraction": fraction, "transform": transform}
        origin["tokenizer"] = tokenizer = self.tokenizer and sha256_file(self.tokenizer)

        def make(replace: bool) -> None:
            prepare(
                self.text,
                out,
                val_text=self.val_text,
                val_fraction=fraction,
                tokenizer=self.tokenizer,
                vocab_size=None if tokenizer else vocab_size,
                transform="none" if tokenizer else transform,
                origin=origin,
                replace=replace,
            )

        return _kept_or_made(out, origin, make, note)


def _folder_name(name: str, vocab_size: int, transform: Transform) -> str:
    return f"{name}-sp{vocab_size}{'' if transform == 'none' else f'-{transform}'}"


def _kept_or_made(
    out: Path, origin: dict[str, Any], make: Callable[[bool], None], note: Callable[[str], None]
) -> Path:
    """The data folder ``out`` of this origin; made if it is not there, in the place of another origin's."""
    if _origin(out) == origin:
        return out
    # Whoever waited finds the folder made.
    with held(out.with_name(f".{out.name}.lock"), "corpus", note, wait=True):
        if (found := _origin(out)) != origin:
            make(found is not None)
    return out


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _origin(folder: Path) -> Any:
    """What an existing folder says about the corpus in it; None if it holds none."""
    manifest = read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else None
    return manifest.get("corpus") if isinstance(manifest, dict) else None


def _split(documents: list[str], fraction: float) -> list[tuple[str, str]]:
    """Each document of ``python_corpus`` with its split: the first ones, by their digests, are held out."""
    left = fraction * sum(map(len, documents))
    found = []
    for text in documents:
        found.append(("val" if left > 0 else "train", text))
        left -= len(text)
    return found


def _sources(library: Path) -> Iterator[Iterator[str]]:
    """The paragraphs of each topic and module, in a fixed order."""
    topics = library / "pydoc_data" / "topics.py"
    if topics.is_file():
        yield from map(_paragraphs, _topics(topics))
    for path in sorted(library.rglob("*.py"), key=lambda path: path.relative_to(library).as_posix()):
        if not _SKIPPED_FOLDERS.intersection(path.relative_to(library).parts):
            yield _module(path)


def _topics(path: Path) -> list[str]:
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            topics = ast.literal_eval(node.value)
            return [topics[name] for name in sorted(topics)]
    return []


def _module(path: Path) -> Iterator[str]:
    """Paragraphs of a module's docstrings and block comments, in the order of its lines."""
    try:
        source = path.read_text(encoding="utf-8")
        with warnings.catch_warnings(action="ignore"):  # for instance odd escapes in its strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return  # templates and deliberately broken files are no modules
    texts = list(_docstrings(tree))
    for comment in _COMMENTS.finditer(source):
        text = re.sub(r"^[ \t]*#+:? ?", "", comment.group(), flags=re.MULTILINE)
        texts.append((source.count("\n", 0, comment.start()) + 1, text))
    for _, text in sorted(texts):
        yield from _paragraphs(text)


def _docstrings(node: ast.AST) -> Iterator[tuple[int, str]]:
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    if isinstance(node, documented) and (text := ast.get_docstring(node)):
        yield node.body[0].lineno, text
    for child in getattr(node, "body", ()):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.If | ast.Try):
            yield from _docstrings(child)


def _paragraphs(text: str) -> Iterator[str]:
    return filter(_is_prose, (" ".join(block.split()) for block in re.split(r"\n\s*\n", text)))


def _is_prose(paragraph: str) -> bool:
    """At least five words, mostly letters, with the small words that sentences have and code has not."""
    words = _WORD.findall(paragraph)
    if len(words) < 5 or ">>>" in paragraph:
        return False
    letters = sum(map(len, words)) + paragraph.count(" ")
    return letters >= 0.8 * len(paragraph) and len(_SMALL_WORD.findall(paragraph)) >= 0.15 * len(words)


def _cut(paragraphs: list[str]) -> Iterator[str]:
    document: list[str] = []
    for paragraph in paragraphs:
        document.append(paragraph)
        if sum(map(len, document)) >= _DOCUMENT_CHARACTERS:
            yield "\n\n".join(document)
            document = []
    if document:
        yield "\n\n".join(document)
