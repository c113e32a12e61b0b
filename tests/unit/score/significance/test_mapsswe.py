"""The matched-pairs test: segments by hand, and NIST's own programs where they are installed."""

import math
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from espnet_ext.score.significance.mapsswe import align, mapsswe, segment_errors, z_statistic
from tests.fixtures.texts import sentences, spoilt

SCTK = Path("/usr/lib/sctk/bin")  # where Debian's package puts them


@pytest.mark.parametrize(
    ("first", "second", "segments"),
    [
        ("CCCC", "CCCC", []),
        ("", "", []),
        ("SCCS", "CCCC", [(1, 0), (1, 0)]),  # two right words end a segment
        ("SCS", "CCC", [(2, 0)]),  # one does not
        ("SCCC", "CSCC", [(1, 1)]),  # right in one system only: the run begins behind
        ("CCSCC", "CCCCC", [(1, 0)]),
        ("SCICS", "CCCC", [(3, 0)]),  # an insertion breaks the run of right words
        ("SCCS", "CCICC", [(2, 1)]),  # in either system
        ("SCCS", "CCCIC", [(1, 0), (1, 1)]),  # the second segment begins with its insertion
        ("CC", "CCI", [(0, 1)]),  # at the end, in the second system alone
        ("CCII", "CC", [(2, 0)]),
        ("ICC", "CC", [(1, 0)]),
        ("DDCCSC", "SSCCCC", [(2, 2), (1, 0)]),
    ],
)
def test_segments_by_hand(first, second, segments):
    assert segment_errors(first, second) == segments
    assert segment_errors(second, first) == [(b, a) for a, b in segments]


def test_a_longer_buffer_joins_segments():
    assert segment_errors("SCCS", "CCCC", buffer=3) == [(2, 0)]
    assert segment_errors("SCS", "CCC", buffer=1) == [(1, 0), (1, 0)]


@pytest.mark.parametrize(
    ("reference", "hypothesis", "path"),
    [
        ("a b c d", "a b c d", "CCCC"),
        ("a b c", "", "DDD"),
        ("a", "x a", "IC"),
        ("a b", "x", "DS"),  # of equal costs: the diagonal from the end
        ("a b c", "b c d", "DCCI"),  # 6, not three substitutions (12)
        ("a b", "b c", "DCI"),  # 6 beats 8, although both are two errors
    ],
)
def test_alignments_by_hand(reference, hypothesis, path):
    assert align(reference.split(), hypothesis.split()) == path


def cell_by_cell(reference, hypothesis):
    """The best path by the plain recursion, ties as sc_stats breaks them."""
    best = {(0, 0): (0, "")}
    for row in range(len(reference) + 1):
        for column in range(len(hypothesis) + 1):
            ways = []
            if row and column:
                right = reference[row - 1] == hypothesis[column - 1]
                cost, path = best[row - 1, column - 1]
                ways.append((cost + (0 if right else 4), path + ("C" if right else "S")))
            if column:
                cost, path = best[row, column - 1]
                ways.append((cost + 3, path + "I"))
            if row:
                cost, path = best[row - 1, column]
                ways.append((cost + 3, path + "D"))
            if ways:
                best[row, column] = min(ways, key=lambda way: way[0])  # the first of equals
    return best[len(reference), len(hypothesis)][1]


letters = st.lists(st.sampled_from("abcd"), max_size=9)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(letters, letters)
def test_alignments_cell_by_cell(reference, hypothesis):
    assert align(reference, hypothesis) == cell_by_cell(reference, hypothesis)


def test_an_utterance_of_thousands_of_words():
    words = [str(n * n % 997) for n in range(3000)]
    path = align(words, [*words[:1000], *words[1200:2500], "x", *words[2501:], "y"])
    assert [path.count(letter) for letter in "CDSI"] == [2799, 200, 1, 1]


def test_statistic_by_hand():
    # Mean 1/2, squares of deviations 1/4 * 2 + 9/4 * 2 = 5, variance 5/3.
    z = z_statistic([1, 0, 2, -1])
    assert z == pytest.approx(0.5 / math.sqrt(5 / 3 / 4))
    assert z_statistic([0, 0, 0]) == 0
    assert z_statistic([1]) is None and z_statistic([]) is None
    assert z_statistic([1, 1, 1]) is None  # no spread: no scale to tell it by
    first, second = ["x b c d x f"], ["a b c x e f"]
    found = mapsswe(["a b c d e f"], first, second)
    # One segment ends behind c; the other holds d and e.
    assert (found.segments, found.first_errors, found.second_errors) == (2, 2, 1)
    assert found.z == pytest.approx(-0.5 / math.sqrt(0.5 / 2)) and found.z == pytest.approx(-1)
    assert found.p == pytest.approx(2 * stats.norm.cdf(-1))


def test_equal_systems_are_not_told_apart():
    texts = sentences(50)
    same = mapsswe(texts, spoilt(texts, 0.3, 1), spoilt(texts, 0.3, 1))
    assert same.segments > 10 and (same.z, same.p) == (0, 1)
    perfect = mapsswe(texts, texts, texts)
    assert (perfect.segments, perfect.z, perfect.p) == (0, None, None)


operations = st.text(alphabet="CCCCCCSDI", max_size=20)


@settings(max_examples=200, deadline=None)
@given(operations, operations)
def test_no_error_is_lost_and_the_order_of_systems_changes_nothing(first, second):
    words = sum(letter != "I" for letter in first)
    second = _cut(second, words)
    found = segment_errors(first, second)
    for column, path in enumerate((first, second)):
        errors = sum(letter != "C" for letter in path)
        assert sum(segment[column] for segment in found) == errors
    assert all(any(segment) for segment in found)
    assert segment_errors(second, first) == [(b, a) for a, b in found]


def _cut(path, words):
    """The path with as many words of the reference as asked for."""
    found = []
    for letter in path:
        words -= letter != "I"
        if words >= 0:
            found.append(letter)
    return "".join(found) + "C" * max(0, words)


def _program(name):
    found = shutil.which(name) or (str(SCTK / name) if (SCTK / name).is_file() else None)
    if found is None:
        pytest.skip("NIST's programs are not installed (Debian package sctk)")
    return found


def _edited(texts, share, seed):
    """Texts with substitutions, deletions and insertions, some of them at the ends."""
    rng = random.Random(seed)
    found = []
    for text in texts:
        words = []
        for word in text.split():
            kind = rng.choices("CSDI", (1 - share, share / 2, share / 4, share / 4))[0]
            other = rng.choice("the queen of my plane where".split())
            words += {"C": [word], "S": [other], "D": [], "I": [word, other]}[kind]
        found.append(" ".join(words))
    return found


def _sclite(folder, references, systems):
    """Alignments of sclite as its sgml, which sc_stats reads."""
    command = [_program("sclite"), "-i", "spu_id", "-o", "sgml", "stdout"]
    for name, texts in {"ref": references, **systems}.items():
        path = folder / f"{name}.trn"
        lines = (f"{text} (s{n % 5}-u{n:04})\n" for n, text in enumerate(texts))
        path.write_text("".join(lines), encoding="utf-8")
        command += ["-r" if name == "ref" else "-h", path, "trn"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(("shares", "seed"), [((0.2, 0.3), 1), ((0.25, 0.26), 2), ((0.6, 0.5), 3)])
def test_agrees_with_nists_programs(tmp_path, shares, seed):
    references = sentences(300, seed)
    one, two = (_edited(references, share, seed + 7 * n) for n, share in enumerate(shares, 1))
    sgml = _sclite(tmp_path, references, {"one": one, "two": two})
    paths = ["".join(re.findall(r"(?:^|:)([CSDI]),", line)) for line in sgml.splitlines()]
    named = re.findall(r'<PATH id="\(s\d-u(\d+)\)', sgml)
    paths = [path for path in paths if path]
    assert len(paths) == len(named) == 600
    for system, part in ((one, slice(0, 300)), (two, slice(300, 600))):
        for number, path in zip(named[part], paths[part], strict=True):
            n = int(number)
            assert align(references[n].split(), system[n].split()) == path
    done = subprocess.run(
        [_program("sc_stats"), "-p", "-t", "mapsswe", "-v", "-n", "-"],
        input=sgml,
        capture_output=True,
        text=True,
        check=True,
    )
    said = re.search(
        r"\(# segs: (\d+)\).*\(mean: +(\S+)\).*\(Z Stat: +(\S+)\) \(Stat Diff: (\w+)\)",
        done.stdout,
    )
    totals = re.search(r"^Totals +\d+ +(\d+) +(\d+)", done.stdout, re.MULTILINE)
    # sc_stats takes the second from the first, we the baseline from the run.
    found = mapsswe(references, two, one)
    assert found.segments == int(said[1])
    assert (found.second_errors, found.first_errors) == (int(totals[1]), int(totals[2]))
    difference = (found.second_errors - found.first_errors) / found.segments
    assert difference == pytest.approx(float(said[2]), abs=5.1e-4)  # it prints three places
    assert found.z == pytest.approx(float(said[3]), abs=5.1e-4)
    assert (found.p < 0.05) == (said[4] == "Yes")
