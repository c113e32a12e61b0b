"""Rules of the source that no linter here knows."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_OF_ALL = {"test_dependencies.py", "test_layout.py"}  # of the whole source, not of a module
_PUBLIC = ("_exit", "_replace")  # of Python's own os and named tuples


def test_no_file_of_the_package_is_longer_than_350_lines():
    package = ROOT / "espnet_ext"
    lengths = {
        str(path.relative_to(package)): path.read_text(encoding="utf-8").count("\n")
        for path in package.rglob("*.py")
    }
    assert len(lengths) > 200
    assert {name: length for name, length in lengths.items() if length > 350} == {}


def not_mirrored(package: Path, tests: Path) -> set[str]:
    """Test files and folders that are not named after a module or folder of the package."""
    found = set()
    for path in tests.rglob("*.py"):
        name, folder = str(path.relative_to(tests)), package / path.parent.relative_to(tests)
        words = path.stem.split("_")[1:] if path.name.startswith("test_") else []
        modules = [folder / "_".join(words[: k + 1]) for k in range(len(words))]
        if path.name == "conftest.py":
            mirrored = folder.is_dir()
        else:
            mirrored = any(m.with_suffix(".py").is_file() or m.is_dir() for m in modules)
        if not mirrored:
            found.add(name)
    return found


def test_unit_tests_mirror_the_package(tmp_path):
    """tests/unit/a/test_b.py and test_b_<topic>.py test espnet_ext/a/b.py, or the folder a/b."""
    package, tests = tmp_path / "package", tmp_path / "tests"
    right = {"a/test_b_c.py", "a/test_b_c_topic.py", "a/test_d.py", "a/conftest.py"}
    wrong = {"test_b_c.py", "a/test_b.py", "a/test_b_cd.py", "a/b_c.py", "e/conftest.py"}
    for path in (package / "a/b_c.py", package / "a/d/f.py", *(tests / n for n in right | wrong)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert not_mirrored(package, tests) == wrong
    assert not_mirrored(ROOT / "espnet_ext", ROOT / "tests/unit") == _OF_ALL


def private_names(source: str) -> Iterator[str]:
    """Private names that a test takes from other modules."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("espnet_ext"):
            yield from (name.name for name in node.names if name.name.startswith("_"))
        elif isinstance(node, ast.Attribute):
            private = node.attr.startswith("_") and not node.attr.startswith("__")
            owner = getattr(node.value, "id", "")
            if private and owner not in ("self", "cls") and node.attr not in _PUBLIC:
                yield node.attr
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "setattr":
            words = [a.value for a in node.args[:2] if isinstance(a, ast.Constant)]
            parts = [part for word in words for part in str(word).split(".")]
            yield from (part for part in parts if part.startswith("_") and part[1:2] != "_")


def test_tests_use_no_private_name():
    assert list(private_names("from espnet_ext.a import _b\na.c._d\nm.setattr(e, '_f', 1)")) == [
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
