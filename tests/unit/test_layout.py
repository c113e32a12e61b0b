"""Rules of the source that no linter here knows."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_PUBLIC = ("_exit", "_replace")  # of Python's own os and named tuples


def test_no_file_of_the_package_is_longer_than_350_lines():
    package = ROOT / "espnet_ext"
    lengths = {
        str(path.relative_to(package)): path.read_text(encoding="utf-8").count("\n")
        for path in package.rglob("*.py")
    }
    assert len(lengths) > 200
    assert {name: length for name, length in lengths.items() if length > 350} == {}


def private_names(source: str) -> Iterator[str]:
    """Private names that a test takes from other modules."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("espnet_ext"):
            yield from (name.name for name in node.names if name.name.startswith("_"))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            private = node.attr.startswith("_") and not node.attr.startswith("__")
            if private and node.value.id not in ("self", "cls") and node.attr not in _PUBLIC:
                yield node.attr
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "setattr":
            words = [a.value for a in node.args[:2] if isinstance(a, ast.Constant)]
            parts = [part for word in words for part in str(word).split(".")]
            yield from (part for part in parts if part.startswith("_") and part[1:2] != "_")


def test_tests_use_no_private_name():
    assert list(private_names("from espnet_ext.a import _b\nc._d\nm.setattr(e, '_f', 1)")) == [
        "_b",
        "_d",
        "_f",
    ]
    found = {
        str(path.relative_to(ROOT)): names
        for path in (ROOT / "tests").rglob("*.py")
        if (names := list(private_names(path.read_text(encoding="utf-8"))))
    }
    assert found == {}
