"""The command espnet-ext: help, unknown verbs, and that light verbs stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import espnet_ext
from espnet_ext.cli.main import VERBS

CLI = Path(espnet_ext.__file__).parent / "cli"

# Runs the command line in a fresh process and says which heavy packages that loaded.
PROBE = """
import sys
from espnet_ext.cli.main import main
sys.argv = ["espnet-ext", *sys.argv[1:]]
code = 0
try:
    main()
except SystemExit as stop:
    code = stop.code or 0
heavy = {"torch", "torchaudio", "espnet", "espnet2"} & set(sys.modules)
print(f"code={code} heavy={sorted(heavy)}")
"""


def probe(*arguments: str, cwd: Path | None = None) -> tuple[str, str, str]:
    """Return (standard output, standard error, the probe's own line)."""
    result = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    *output, last = result.stdout.splitlines()
    return "\n".join(output), result.stderr, last


def test_overview_has_a_line_for_every_verb():
    output, _, last = probe("--help")
    assert last == "code=0 heavy=[]"
    lines = {line.split()[0]: line.split()[1:] for line in output.splitlines()[2:]}
    assert set(lines) == set(VERBS)
    assert all(lines.values()), lines


def test_without_a_verb_it_explains_and_fails():
    output, _, last = probe()
    assert last == "code=2 heavy=[]"
    assert "usage" in output


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_has_an_example_and_is_light(verb):
    output, _, last = probe(verb, "--help")
    assert last == "code=0 heavy=[]"
    assert f"usage: espnet-ext {verb}" in output
    example = output.split("Example", 1)[1]
    assert f"espnet-ext {verb}" in example


def test_verbs_and_modules_are_the_same():
    # Entry points that ESPnet's trainer spawns are modules of this folder too, not verbs.
    modules = set()
    for path in CLI.glob("*.py"):
        names = {n.name for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef)}
        if {"add_arguments", "run"} <= names:
            modules.add(path.stem)
    assert modules == set(VERBS)


def test_unknown_verb_is_one_line_with_the_nearest():
    _, error, last = probe("scor")
    assert last == "code=2 heavy=[]"
    assert len(error.splitlines()) == 1
    assert "'score'" in error


def test_a_users_mistake_is_one_line(tmp_path):
    _, error, last = probe("score", "conf/absent.yaml", cwd=tmp_path)
    assert last == "code=1 heavy=[]"
    assert len(error.splitlines()) == 1
    assert "absent.yaml" in error


def test_score_of_plain_files_is_light(tmp_path):
    (tmp_path / "ref").write_text("a the cat sat\nb on the mat\n")
    (tmp_path / "hyp").write_text("a the cat sad\nb on the mat\n")
    _, error, last = probe("score", "--ref", "ref", "--hyp", "hyp", "--out", "scored", cwd=tmp_path)
    assert last == "code=0 heavy=[]", error
    assert (tmp_path / "scored").exists()


def test_report_is_light(tmp_path):
    _, error, last = probe("report", "--all", "--results", str(tmp_path), cwd=tmp_path)
    assert last == "code=1 heavy=[]"
    assert len(error.splitlines()) == 1
