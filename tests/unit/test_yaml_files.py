"""YAML that is no data is refused in one line; values stay as they are written."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ext.config.training import load_config
from espnet_ext.errors import UserError
from espnet_ext.yaml_files import parse_yaml, read_mapping

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
