"""setup.py declares what the package imports, and tools/constraints.txt pins all that it names."""

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# No module of ours imports these yet, or only ESPnet does, which does not bring them.
UNUSED_SO_FAR = {
    "editdistance",
    "nltk",
    "rich",
    "sacrebleu",
    "safetensors",
    "tensorboard",
    "torcheval",
}


def normal(requirement: str) -> str:
    """Name of a requirement, as registries spell it."""
    return re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower().replace("_", "-")


def declared() -> tuple[set[str], dict[str, set[str]]]:
    """Names that setup.py requires, and those of its extras."""
    values = {}
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            values[node.targets[0].id] = ast.literal_eval(node.value)
    extras = {key: {normal(r) for r in names} for key, names in values["EXTRAS"].items()}
    return {normal(r) for r in values["REQUIRES"]}, extras


def imported(*folders: str) -> set[str]:
    """Distributions that the Python files of ``folders`` import, anywhere in them."""
    found: set[str] = set()
    for path in (p for folder in folders for p in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    found -= {*sys.stdlib_module_names, "espnet_ext"}
    known = packages_distributions()
    return {normal(known[name][0]) for name in found if name in known}


def pins() -> set[str]:
    lines = (ROOT / "tools/constraints.txt").read_text().splitlines()
    return {normal(line) for line in lines if not line.startswith("#")}


def test_what_is_imported_is_declared():
    required, extras = declared()
    optional = set().union(*(extras[key] for key in extras if key != "dev"))
    assert imported("espnet_ext", "egs", "benchmarks") <= required | optional
    assert imported("tests") <= required | optional | extras["dev"]


def test_what_is_required_is_imported():
    required, _ = declared()
    assert required - imported("espnet_ext", "egs") <= UNUSED_SO_FAR


def test_what_is_declared_is_pinned():
    required, extras = declared()
    assert required | set().union(*extras.values()) <= pins()
