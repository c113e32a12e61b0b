"""The commands in a page's bash blocks, expanded by bash but not run."""

import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.docs.pages import RECIPE_PAGES, blocks, name_of

# With extdebug, a command is left out if the trap before it fails. So loops and cd run, and every
# other command is only printed: its folder, then its expanded words.
_TRACE = """
shopt -s extdebug
trace() {
  local words=()
  case $1 in
    'for '* | 'cd '*) return 0 ;;
  esac
  eval "words=(${1%%' >'*})"
  { printf '%s' "$PWD"; printf ' %q' "${words[@]}"; echo; } >&3
  return 1
}
trap 'trace "$BASH_COMMAND"' DEBUG
"""


@dataclass(frozen=True)
class Command:
    """A command; ``place`` is the page and the line of its block."""

    place: str
    folder: Path
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.place}: {shlex.join(self.words)}"


def commands(page: Path, tree: Path) -> list[Command]:
    """The commands of a page, whose blocks follow one another, in a copy of the repository.

    A block of a recipe's README starts in the recipe's folder if it runs ``./run.sh`` or a verb
    without changing the folder, else at the root.
    """
    script = [_TRACE]
    for block in blocks(page, "bash"):
        if block.file is None:
            if page in RECIPE_PAGES:
                script.append(f"cd {shlex.quote(str(tree / _start(page, block.text)))}")
            script += [f": {block}", block.text]
    done = subprocess.run(
        [shutil.which("bash") or "bash", "-c", 'exec 3>"$0"; eval "$1"', "/dev/stdout"]
        + ["\n".join(script)],
        cwd=tree,
        env={"PATH": "/nonexistent", "HOME": os.environ.get("HOME", "/")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert not done.stderr, f"{name_of(page)}: {done.stderr}"
    found, place = [], name_of(page)
    for line in done.stdout.splitlines():
        folder, *words = shlex.split(line)
        if words[0] == ":":
            place = words[1]
        elif words:
            found.append(Command(place, Path(folder), tuple(words)))
    return found


def _start(page: Path, text: str) -> Path:
    recipe = Path(name_of(page)).parent
    first = next(line for line in text.splitlines() if line and not line.startswith("#"))
    return Path() if first.startswith(("egs/", "cd egs/")) else recipe
