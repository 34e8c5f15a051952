"""The commands of README and tutorial as a user types them: all, in their order, in one shell.

    python -m tests.e2e.readme_tour

clones the repository (what is committed) into an empty folder and does all of it there, with installation,
demo and all tests; that needs a package index. Each command is shown with its time and exit status; the first
that fails is the last. TESTS=tests/unit in the environment makes `make test` shorter. `test_readme.py` does
the same without installing anything.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_STEP = """
step() {
  local began=$SECONDS
  printf '\\n$ %s\\n' "$1"
  eval "$2"
  local status=$?
  printf '[status %s, %s s]\\n' "$status" "$((SECONDS - began))"
  [ "$status" = 0 ] || exit "$status"
}
"""


def commands(document: Path) -> list[str]:
    """What a document's sh and python blocks have a reader type, in order; a python block is one command."""
    found: list[str] = []
    blocks = re.findall(r"```(sh|python)\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    for kind, block in blocks:
        if kind == "python":
            found.append(f"python - <<'END'\n{block}END")
        else:
            lines = block.replace("\\\n", " ").splitlines()
            found += [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return found


def script(typed: Sequence[str], stand_ins: Mapping[str, str] | None = None) -> str:
    """A bash script that runs commands one by one in its own shell.

    Args:
        typed: the commands; what follows a space and a # is a comment.
        stand_ins: what is run instead of some of them, by the command without its comment.
    """
    steps = []
    for command in typed:
        plain = without_comment(command)
        steps.append(f"step {_quoted(command)} {_quoted((stand_ins or {}).get(plain, command))}")
    return _STEP + "\n".join(steps) + "\n"


def without_comment(command: str) -> str:
    """A line as it counts for the shell; a python block as it stands."""
    return command if "\n" in command else re.sub(r"\s+#.*", "", command).strip()


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def main() -> int:
    """Do it in a fresh clone; return the status of the shell."""
    environment = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    with tempfile.TemporaryDirectory(prefix="pgolf-readme-") as folder:
        clone = Path(folder) / "pgolf"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        typed = [*commands(clone / "README.md"), *commands(clone / "docs" / "tutorial.md")]
        done = subprocess.run(["bash", "-c", script(typed)], cwd=clone, env=environment)
    print(f"\n{len(typed)} commands; status {done.returncode}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
