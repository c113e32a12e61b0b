"""Names that become paths, YAML that is no data, and folders that another process uses."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ext.config.grid import read_grid
from espnet_ext.config.training import load_config
from espnet_ext.data.kaldi_dir import read_table
from espnet_ext.errors import UserError, check_name
from espnet_ext.experiment import Experiment
from espnet_ext.files import HOLDS, atomic_path, in_use
from espnet_ext.yaml_files import parse_yaml, read_mapping
from tests.fixtures import forked
from tests.fixtures.finished import VERBS, complains

TINY = Path("exp/tiny")

BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(10 * ['*' + chr(97 + i)])}]\n" for i in range(9)
)
BAD = {
    "twice": ("a: 1\nb: 2\na: 3\n", r"the key a occurs twice \(line 3\)"),
    "twice inside": ("x:\n  b: 1\n  b: 2\n", r"the key b occurs twice \(line 3\)"),
    "bomb": (BOMB, "aliases expand"),
    "itself": ("a: &x [*x]\n", "an alias of what holds it"),
    "deep": ("[" * 5000, "nested too deeply"),
    "tag": ("x: !!python/object:os.system a\n", r"the tag .*plain data \(line 1\)"),
    "tag of a key": ("!!python/name:os.system x: 1\n", r"the tag .*plain data \(line 1\)"),
    "set": ("a: 1\nx: !!set {a, b}\n", r"the tag set; values are plain data \(line 2\)"),
    "bytes": ("x: !!binary aGk=\n", "the tag binary"),
    "date": ("x: !!timestamp 2026-02-30\n", "the tag timestamp"),
    "number": ("a: 1\nx: !!int x\n", r"'x' is no int \(line 2\)"),
    "empty number": ("x: !!float ''\n", r"'' is no float \(line 1\)"),
    "truth": ("x: !!bool y\n", r"'y' is no bool \(line 1\)"),
    "digits": (f"x: {'9' * 5000}\n", r"a number of 5,000 characters \(line 1\)"),
    "hex digits": (f"x: 0x{'f' * 90}\n", r"over 64 bits \(line 1\)"),
    "base 60": (f"x: !!int {'59:' * 9999}0\n", "a number of 29,998 characters"),
    "key": ("x: {? [a] : 1}\n", r"keys are words \(line 1\)"),
    "merge": ("<<: 3\n", "expected a mapping or list of mappings for merging"),
    "two": ("a: 1\n---\nb: 2\n", "expected a single document"),
    "control": ("x: \0\n", "not valid YAML"),
    "list": ("- a\n", "expected keys and values"),
}


@pytest.mark.parametrize("case", BAD)
def test_yaml_that_is_refused(case, tmp_path):
    text, reason = BAD[case]
    path = tmp_path / "train_x.yaml"
    path.write_text(text)
    for read in (read_mapping, load_config):
        with pytest.raises(UserError, match=reason) as error:
            read(path)
        assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_values_stay_as_they_are_written():
    found = parse_yaml("a: no\nno: 1\n1.10: yes\nd: 2026-02-30\ne: true\n", "f")
    assert found == {"a": "no", "no": 1, "1.10": "yes", "d": "2026-02-30", "e": True}
    numbers = parse_yaml("[1, 010, 0x1f, 1_000, 1e-3, 1.5e3, .5, -2., .inf, 1:30, 1e, '1']", "f")
    assert numbers == [
        1,
        "010",
        31,
        1000,
        0.001,
        1500.0,
        0.5,
        -2.0,
        float("inf"),
        "1:30",
        "1e",
        "1",
    ]
    assert [type(number) for number in numbers[:5]] == [int, str, int, int, float]
    merged = parse_yaml("base: &b {x: 1, y: 3}\nc: {<<: *b, x: 2}\n", "f")
    assert merged["c"] == {"x": 2, "y": 3}
    deeper = "base: &b {x: 1}\na: {deep: {er: &c {<<: *b, x: 2}}}\nd: {<<: *c}\n"
    assert parse_yaml(deeper, "f") | {"base": 0} == {
        "base": 0,
        "a": {"deep": {"er": {"x": 2}}},
        "d": {"x": 2},
    }


@given(st.lists(st.text() | st.from_regex(r"[-+]?[0-9_.:xoeE+-]{1,6}", fullmatch=True)))
@settings(max_examples=300)
def test_words_that_programs_wrote_are_words(words):
    """Token lists have 08 and 1e3, which PyYAML does not quote."""
    words = [word for word in words if word.isprintable()] + ["08", "1e3", "-1e3", "no", "1:30"]
    text = yaml.safe_dump(words, allow_unicode=True)
    assert parse_yaml(text, "f", dumped=True) == words


@given(st.lists(st.floats(allow_nan=False) | st.integers(-(2**63) + 1, 2**63 - 1) | st.booleans()))
def test_numbers_that_programs_wrote_are_numbers(numbers):
    for dumped in (True, False):
        assert parse_yaml(yaml.safe_dump(numbers), "f", dumped) == numbers


def test_a_file_with_a_byte_order_mark_is_read(tmp_path):
    path = tmp_path / "train_x.yaml"
    path.write_text("encoder: conformer\n", encoding="utf-8-sig")
    assert read_mapping(path) == {"encoder": "conformer"}
    path.write_bytes(b"encoder: \xff\n")
    with pytest.raises(UserError, match="not UTF-8 at byte 9"):
        read_mapping(path)


@pytest.mark.parametrize(
    "name",
    ["../x", "a/../b", "/etc", ".x", "-x", "a b", "a\0", "a\nb", "", "a//b", "a\\b", 201 * "a"],
)
def test_names_that_leave_a_folder_are_refused(name, tmp_path):
    with pytest.raises(UserError, match="a name has no blank"):
        check_name(name, "the tag")
    path = tmp_path / "train_x.yaml"
    path.write_text("encoder: conformer\n")
    if name:
        with pytest.raises(UserError, match="a name has no blank"):
            Experiment.load(path, variant=name)
    with pytest.raises(UserError, match="a name has no blank"):
        load_config(path, tag=name)
    for key in ("train_set", "dev_set", "baseline", "variant", "labels", "target"):
        path.write_text(yaml.safe_dump({"encoder": "conformer", "recipe": {key: name}}))
        with pytest.raises(UserError, match=r"a name has no blank|must be"):
            load_config(path)


def test_names_of_sets_folds_and_results_stay_inside(tmp_path):
    from espnet_ext.data.corpora.folds import read_folds

    path = tmp_path / "train_x.yaml"
    path.write_text("encoder: conformer\n")
    with pytest.raises(UserError, match=r"the set '../x': a name has no blank"):
        Experiment.load(path).decoded("ctc_greedy", "../x")
    (tmp_path / "folds").mkdir()
    (tmp_path / "folds/voice").write_text("voice-a\n../x\n")
    with pytest.raises(UserError, match=r"folds/voice: '../x': a name has no blank"):
        read_folds(tmp_path, "voice")


def test_byte_order_marks_in_tables_are_no_part_of_an_id(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"\xef\xbb\xbfu1 one\n\xef\xbb\xbfu2 two\n")
    assert read_table(path) == {"u1": "one", "u2": "two"}


@pytest.mark.parametrize(
    "option",
    [
        "attention_heads: 0",
        "num_blocks: 1000000000",
        "num_blocks: 9999999",
        "linear_units: 9000000",
    ],
)
def test_a_model_that_cannot_be_is_one_line(tmp_path, option):
    from espnet_ext.bridge.build import build_model

    path = tmp_path / "train_x.yaml"
    small = "output_size: 2, linear_units: 1, cnn_module_kernel: 1, attention_heads: 1"
    conf = ", ".join([*(word for word in small.split(", ") if word[:9] != option[:9]), option])
    path.write_text(f"encoder: conformer\nencoder_conf: {{{conf}}}\ntoken_type: char\n")
    with pytest.raises(UserError, match=r"train_x.yaml: the model does not build") as error:
        build_model(Experiment.load(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["vocabulary", "classes"])
def test_lists_of_tokens_are_bounded(tmp_path, key):
    path = tmp_path / "train_x.yaml"
    path.write_text(f"encoder: conformer\nrecipe: {{{key}: 1000000000}}\n")
    with pytest.raises(UserError, match=f"recipe: {key} must be a whole number .*not 1000000000"):
        load_config(path)


# --- grids


@pytest.fixture
def grid(tmp_path):
    (tmp_path / "train_x.yaml").write_text("encoder: conformer\n")

    def write(text):
        path = tmp_path / "some.yaml"
        path.write_text(text)
        return path

    return write


def test_systems_may_be_called_no_or_like_a_number(grid):
    path = grid(
        "seeds: [1]\nbaseline: no\nsystems:\n  no: {config: train_x.yaml}\n"
        "  1.10: {config: train_x.yaml, than: ['1.10', no]}\n".replace("'1.10', ", "")
    )
    assert [system.name for system in read_grid(path).systems] == ["no", "1.10"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("seeds: [1]\nsystems:\n  ../x: {config: train_x.yaml}\n", "a name has no blank"),
        ("seeds: [1]\nsystems:\n  a/b: {config: train_x.yaml}\n", "a name without '/'"),
        ("seeds: [1]\nsystems:\n  a: {config: train_x.yaml}\n  a: {config: b}\n", "twice"),
        ("seeds: [1]\npart: ../x\nsystems:\n  a: {config: train_x.yaml}\n", "a name has no blank"),
        (
            "seeds: [1]\nsystems:\n  a: {config: train_x.yaml, vary: {x/../../y: [1]}}\n",
            "a name without '/'",
        ),
        (
            f"seeds: [1]\nsystems:\n  a: {{config: train_x.yaml, vary: {{x: [{300 * 'b'}]}}}}\n",
            "over 200 bytes",
        ),
        ("seeds: [1]\nbaseline: 1.10\nsystems:\n  1.10: {config: train_x.yaml}\n", "quote one"),
        ("seeds: [[1]]\nsystems:\n  a: {config: train_x.yaml}\n", "seeds"),
        ("seeds: [1]\nsystems:\n  a: {config: 0}\n", "config"),
        ("seeds: [1]\nsystems:\n  a: {config: train_x.yaml, vary: 3}\n", "vary"),
        ("seeds: 1\nsystems: 2\n", "seeds|systems"),
    ],
)
def test_grids_that_are_refused(grid, text, reason):
    with pytest.raises(UserError, match=reason) as error:
        read_grid(grid(text))
    assert "\n" not in str(error.value)


WHOLE = """split: voice
seeds: [1, 2]
part: test
baseline: light
known: {commonest: 0.1}
systems:
  light: {config: train_x.yaml}
  hrf: {config: train_x.yaml, vary: {encoder_conf.hrf.ratio: [2, 4]}, after: light, than: [light]}
"""
changes = st.lists(
    st.tuples(st.integers(0, len(WHOLE) - 1), st.sampled_from("{}[]:,-'\"#&*!|>%@ \n\t0aé.~?")),
    min_size=1,
    max_size=6,
)


def grid_survives(folder: Path, places) -> None:
    """A changed grid is read, or refused in one line."""
    (folder / "train_x.yaml").write_text("encoder: conformer\n")
    content = list(WHOLE)
    for place, letter in places:
        content[place] = letter
    path = folder / "some.yaml"
    path.write_text("".join(content), encoding="utf-8")
    try:
        read_grid(path)
    except UserError as error:
        assert "\n" not in str(error)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(places=changes)
def test_changed_grids(tmp_path_factory, places):
    grid_survives(tmp_path_factory.mktemp("grid"), places)


@pytest.mark.slow
@settings(max_examples=5000, deadline=None, derandomize=True)
@given(places=changes)
def test_many_changed_grids(tmp_path_factory, places):
    grid_survives(tmp_path_factory.mktemp("grid"), places)


# --- folders in use, full disks


def holding(folder: Path) -> subprocess.Popen:
    """A process that runs in exp/tiny, until it reads a line."""
    program = (
        "from pathlib import Path; from espnet_ext.files import in_use\n"
        "with in_use(Path('exp/tiny')): print('held', flush=True); input()"
    )
    command = [sys.executable, "-c", program]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    other = subprocess.Popen(command, cwd=folder, env=os.environ | {HOLDS: ""}, text=True, **pipes)
    assert other.stdout.readline() == "held\n"
    return other


DONE = {
    "train": "exp/tiny/.train.done.json",
    "deploy": "exp/tiny/deploy/.merged.done.json",
    "decode": "exp/tiny/decode/*/*/*/.done.json",
    "score": "exp/tiny/score/*/*/.*.stamp",
    "report": "exp/tiny/.result.stamp",
}


@pytest.mark.parametrize("verb", DONE)
def test_a_folder_in_use_is_refused_and_the_owners_verbs_are_not(copy, verb, monkeypatch):
    folder = copy(DONE[verb])
    with holding(folder) as other:
        line = complains(folder, VERBS[verb])
        assert line == "another process runs in exp/tiny; wait for it or end it"
        if verb == "score":
            monkeypatch.setenv(HOLDS, "exp/tiny")
            logs = folder.with_suffix(".logs")
            assert forked.Command(folder, VERBS[verb], logs).wait().code == 0
            monkeypatch.delenv(HOLDS)
        other.communicate("\n")
    if verb == "score":
        assert forked.Command(folder, VERBS[verb], folder.with_suffix(".logs")).wait().code == 0


def test_a_folder_is_free_once_its_owner_is_killed(tmp_path, monkeypatch):
    """Also where processes that the owner forked live on."""
    monkeypatch.chdir(tmp_path)
    program = (
        "import os, time; from pathlib import Path; from espnet_ext.files import in_use\n"
        "with in_use(Path('exp/tiny')):\n"
        "    if os.fork() == 0:\n"
        "        print(os.getpid(), flush=True)\n"
        "    time.sleep(100)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as other:
        child = int(other.stdout.readline())
        try:
            with pytest.raises(UserError, match="another process runs in"), in_use(TINY):
                pass
            other.kill()
            other.wait()
            with in_use(TINY):
                assert not list(TINY.iterdir())
        finally:
            os.kill(child, signal.SIGKILL)


def test_an_error_of_the_disk_names_the_file_that_is_written(tmp_path):
    with pytest.raises(OSError, match="No space") as error, atomic_path(tmp_path / "a/b"):
        raise OSError(28, "No space left on device")
    assert error.value.filename == str(tmp_path / "a/b")
