"""Links lead to files, headings and code that exist; paths in the text do too."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, PAGES, README, anchors, files, name_of
from tests.docs.pages import without_code as text_of
from tests.fixtures.tree import MADE_BY_RUNS, ROOT

RESULTS = [ROOT / "RESULTS.md", *sorted((ROOT / "results").rglob("*.md"))]
LINK = re.compile(r"(?<!\\)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^)\s]+)\)")
REFERENCE = re.compile(r"^\[[^\]]+\]: (\S+)$", re.M)
URL = re.compile(r"https://[a-z0-9.-]+\.[a-z]{2,}(/[\w./~%?=#:-]*)?")
PATH = re.compile(r"`((?:espnet_ext|egs|tests|utils|tools|results|docs|benchmarks)/[^`\s]+)`")
WRITTEN = {name for page in DOCS for name in files(page)}
WRITTEN |= {str(folder) for name in WRITTEN for folder in Path(name).parents}


@pytest.mark.parametrize("page", [*PAGES, *RESULTS], ids=name_of)
def test_links_lead_somewhere(page):
    text = re.sub(r"``.*?``", "", text_of(page))
    targets = [target for _, target in LINK.findall(text)] + REFERENCE.findall(text)
    for target in targets:
        if "://" in target:
            assert URL.fullmatch(target), target
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        assert found.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(found), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_linked_code_has_these_names(page):
    for words, target in LINK.findall(text_of(page)):
        symbol = re.fullmatch(r"`([A-Za-z_][\w.]*)`", words)
        if target.endswith(".py") and symbol and not symbol[1].endswith(".py"):
            assert symbol[1] in names(page.parent / target), f"{symbol[1]} in {target}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_in_the_text_exist(page):
    for name in PATH.findall(text_of(page)):
        # <tag> and NAME stand for names; runs make some folders.
        if re.search(r"<|\b[A-Z]{2,}\b", name) or MADE_BY_RUNS & set(name.split("/")[3:]):
            continue
        for one in braces(name):
            assert one in WRITTEN or list(ROOT.glob(one.rstrip("/"))), name


def test_every_page_is_in_the_index():
    index = ROOT / "docs/index.md"
    linked = {(index.parent / t).resolve() for _, t in LINK.findall(text_of(index))}
    assert {page for page in DOCS if page != index} <= linked
    assert index in {(README.parent / t).resolve() for _, t in LINK.findall(text_of(README))}


@cache
def names(path: Path) -> set[str]:
    """The names that a module defines: of classes also the members, as Class.member."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        found |= defined(node)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{name}" for part in node.body for name in defined(part)}
    return found


def defined(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Assign):
        return {ast.unparse(target) for target in node.targets}
    return {ast.unparse(node.target)} if isinstance(node, ast.AnnAssign) else set()


def braces(name: str) -> list[str]:
    """Expand a{b,c}d as a shell does."""
    match = re.search(r"\{([^{}]*)\}", name)
    if match is None:
        return [name]
    ends = (name[: match.start()], name[match.end() :])
    return [one for part in match[1].split(",") for one in braces(f"{ends[0]}{part}{ends[1]}")]
