"""Short texts to try the commands on: the topics of Python's own help, a file each.

    python examples/books.py books

It needs nothing but Python: what `help("topics")` lists is written as books/assert.txt, books/assignment.txt,
...
"""

from __future__ import annotations

import sys
from pathlib import Path
from pydoc_data.topics import topics


def main() -> None:
    """Write the files into a folder."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in topics.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    print(f"{folder}: {len(topics)} texts, {sum(map(len, topics.values())):,} characters")


if __name__ == "__main__":
    main()
