"""The pages of the documentation: their code blocks, links and headings."""

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

from tests.fixtures.tree import MADE_BY_RUNS, ROOT

README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").rglob("*.md"))
RECIPE_PAGES = sorted(
    path
    for path in (ROOT / "egs").rglob("README.md")
    if not MADE_BY_RUNS & set(path.relative_to(ROOT).parts[3:])
)
# All pages that people write. RESULTS.md and the pages in results/ are generated.
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS, *RECIPE_PAGES]
# Their own tests follow these to the letter.
FOLLOWED = {"docs/new_corpus.md", "docs/new_method.md"}

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.M | re.S)
_NAMED = re.compile(r"^ *`((?:egs|tests|espnet_ext)/\S+)`:\n\n\Z", re.M)


@dataclass(frozen=True)
class Block:
    """A block of code; ``file`` is the path that the line above the block gives it."""

    page: Path
    line: int
    language: str
    text: str
    file: str | None

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str | None = None) -> list[Block]:
    """The code blocks of a page, of one language if it is given."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        named = _NAMED.search(text[: match.start()])
        line = text.count("\n", 0, match.start()) + 1
        code = textwrap.dedent(match[3])
        found.append(Block(page, line, match[2], code, named[1] if named else None))
    return [block for block in found if language in (None, block.language)]


def without_code(page: Path) -> str:
    """The text of a page without its code blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def files(page: Path) -> dict[str, str]:
    """The files that a page writes, by their paths."""
    return {block.file: block.text for block in blocks(page) if block.file}


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: dict[str, int] = {}
    for title in re.findall(r"^#+ (.*)$", without_code(page), re.M):
        words = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", title).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
    return {f"{slug}-{n}" if n else slug for slug, last in found.items() for n in range(last + 1)}


def write_files(target: Path, found: dict[str, str]) -> None:
    """Write files of a page into a copy of the repository."""
    for name, text in found.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        if path.suffix == ".sh":
            path.chmod(0o755)
