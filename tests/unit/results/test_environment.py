"""The commit that a result names."""

import subprocess

import pytest

from espnet_ext.results.environment import commit


@pytest.fixture
def tree(tmp_path):
    """A repository with a package, a result and what is made of results, all committed."""
    for name in ("package/code.py", "results/toy_asr1/run.json", "RESULTS.md", "README.md"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("before")
    who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "all"]):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    return tmp_path


def test_a_changed_tree_is_told(tree):
    clean = commit(tree / "package")
    assert len(clean) == 40
    (tree / "package/code.py").write_text("after")
    assert commit(tree / "package") == f"{clean}+dirty"


@pytest.mark.parametrize("name", ["results/toy_asr1/run.json", "RESULTS.md", "README.md"])
def test_what_publishing_writes_is_not_what_a_result_was_made_by(tree, name):
    clean = commit(tree / "package")
    (tree / name).write_text("after")
    assert commit(tree / "package") == clean


def test_no_repository(tmp_path):
    assert commit(tmp_path) == "unknown"
