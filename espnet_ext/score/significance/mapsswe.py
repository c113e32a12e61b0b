"""Matched-pairs sentence-segment word error test (MAPSSWE), as NIST's sc_stats computes it.

Gillick, Cox: "Some statistical issues in the comparison of speech recognition algorithms", ICASSP
1989; Pallett, Fisher, Fiscus: "Tools for the analysis of benchmark speech recognition tests",
ICASSP 1990. Errors of one utterance depend on each other, but hardly across a few words that both
systems recognise. Utterances are therefore cut into segments there, and the difference of the two
systems' errors is tested over segments. The segments depend on the alignment, so it is that of
sclite, whose costs are 3, 3 and 4; jiwer and kaldialign break ties in other ways.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np

BUFFER = 2  # correct words in a row, in both systems, that end a segment: sc_stats's constant
_GAP = 3  # sclite's cost of an insertion and of a deletion
_SUBSTITUTION = 4
CHUNK = 5_000  # utterances that are cut into words at once
CELLS = 2_000_000  # of the tables that are filled at once
_DIAGONAL, _DELETION, _INSERTION = np.arange(3, dtype=np.uint8)


@dataclass(frozen=True)
class Mapsswe:
    """The test of a second system against a first; z is negative if the second is better."""

    segments: int
    first_errors: int
    second_errors: int
    z: float | None  # None: fewer than two segments, or all with the same difference, not 0
    p: float | None  # two-sided


def mapsswe(
    references: Sequence[str], first: Sequence[str], second: Sequence[str], buffer: int = BUFFER
) -> Mapsswe:
    """Compare two systems' hypotheses of the same utterances.

    Args:
        references: normalised texts, one an utterance.
        first: hypotheses of the system compared with (the baseline).
        second: hypotheses of the system in question.
        buffer: correct words that end a segment.

    Returns:
        Segments, the errors in them, z = mean / (deviation / sqrt(segments)) of second minus
        first, and p from the normal distribution. sc_stats prints z = 0 where ours is None.
    """
    found = []
    for start in range(0, len(references), CHUNK):
        chunk = slice(start, start + CHUNK)
        words = [text.split() for text in references[chunk]]
        before, after = (
            align_many(words, [text.split() for text in texts[chunk]]) for texts in (first, second)
        )
        for one, other in zip(before, after, strict=True):
            found += segment_errors(one, other, buffer)
    z = z_statistic([after - before for before, after in found])
    return Mapsswe(
        segments=len(found),
        first_errors=sum(before for before, _ in found),
        second_errors=sum(after for _, after in found),
        z=z,
        p=None if z is None else math.erfc(abs(z) / math.sqrt(2)),
    )


def z_statistic(differences: Sequence[int]) -> float | None:
    """Return mean / standard error of differences (segments,); None where it has no value."""
    if len(differences) < 2:
        return None
    spread = stdev(differences)
    if spread == 0:
        return None if differences[0] else 0.0
    return mean(differences) / (spread / math.sqrt(len(differences)))


def segment_errors(first: str, second: str, buffer: int = BUFFER) -> list[tuple[int, int]]:
    """Cut one utterance into segments and count both systems' errors in each.

    A segment ends after ``buffer`` words in a row that both systems recognise, with nothing
    inserted between them, and at the end of the utterance. A segment without an error does not
    count.

    Args:
        first: operations of an alignment as of ``align``.
        second: operations of another system, of the same reference.
        buffer: correct words that end a segment.
    """
    segments = []
    before = after = right = 0
    for (inserted, word), (inserted_too, word_too) in zip(
        _by_word(first), _by_word(second), strict=True
    ):
        if inserted or inserted_too:
            right = 0
        right = right + 1 if word == word_too == "C" else 0
        before += inserted + (word in ("S", "D"))
        after += inserted_too + (word_too in ("S", "D"))
        if right >= buffer and (before or after):
            segments.append((before, after))
            before = after = 0
    if before or after:
        segments.append((before, after))
    return segments


def _by_word(operations: str) -> list[tuple[int, str]]:
    """The insertions before each reference word, with its operation; then those at the end."""
    found, inserted = [], 0
    for operation in operations:
        if operation == "I":
            inserted += 1
        else:
            found.append((inserted, operation))
            inserted = 0
    return [*found, (inserted, "")]


def align(reference: Sequence[str], hypothesis: Sequence[str]) -> str:
    """Align as sclite does; return a letter for each step: C, S, D or I.

    Costs are 4 for a substitution, 3 for a deletion or an insertion. Ties go to the diagonal, then
    to the insertion, then to the deletion, from the ends of the texts on.
    """
    return align_many([reference], [hypothesis])[0]


def align_many(
    references: Sequence[Sequence[str]], hypotheses: Sequence[Sequence[str]]
) -> list[str]:
    """Align many pairs as ``align`` does, those of similar length together."""
    found = ["C" * len(reference) for reference in references]
    different = [n for n, text in enumerate(references) if text != hypotheses[n]]
    sizes = {n: (len(references[n]) + 1) * (len(hypotheses[n]) + 1) for n in different}
    different.sort(key=sizes.__getitem__)
    while different:
        # The largest last: a table has the rows and columns of the longest texts in it.
        count = max(1, min(len(different), CELLS // sizes[different[-1]]))
        together, different = different[-count:], different[:-count]
        pairs = [(references[n], hypotheses[n]) for n in together]
        for n, table, pair in zip(together, _tables(pairs), pairs, strict=True):
            found[n] = _back(table, *pair)
    return found


def _tables(pairs: Sequence[tuple[Sequence[str], Sequence[str]]]) -> np.ndarray:
    """The best last step to each cell, (pairs, reference words + 1, hypothesis words + 1)."""
    numbers: dict[str, int] = {}
    sides = [
        [[numbers.setdefault(word, len(numbers)) for word in text] for text in side]
        for side in zip(*pairs, strict=True)
    ]
    # Padding differs from every word, and what follows a text changes nothing before its end.
    meant, said = (_padded(rows, filler) for rows, filler in zip(sides, (-1, -2), strict=True))
    gaps = _GAP * np.arange(said.shape[1] + 1)
    costs = np.tile(gaps, (len(pairs), 1))
    steps = np.empty((len(pairs), meant.shape[1] + 1, said.shape[1] + 1), dtype=np.uint8)
    steps[:, 0] = _INSERTION
    steps[:, 1:, 0] = _DELETION
    for row in range(meant.shape[1]):
        diagonal = costs[:, :-1] + np.where(said == meant[:, row, None], 0, _SUBSTITUTION)
        deletion = costs + _GAP
        # The least cost of each cell: from above, or along the row from any cell to the left.
        costs = deletion.copy()
        np.minimum(costs[:, 1:], diagonal, out=costs[:, 1:])
        costs = np.minimum.accumulate(costs - gaps, axis=1) + gaps
        insertion = costs[:, :-1] + _GAP
        gap = np.where(deletion[:, 1:] < insertion, _DELETION, _INSERTION)
        matched = (diagonal <= deletion[:, 1:]) & (diagonal <= insertion)
        steps[:, row + 1, 1:] = np.where(matched, _DIAGONAL, gap)
    return steps


def _padded(rows: Sequence[Sequence[int]], filler: int) -> np.ndarray:
    padded = np.full((len(rows), max(map(len, rows))), filler, dtype=np.int64)
    for n, row in enumerate(rows):
        padded[n, : len(row)] = row
    return padded


def _back(table: np.ndarray, reference: Sequence[str], hypothesis: Sequence[str]) -> str:
    """Read the best path from its end."""
    row, column, found = len(reference), len(hypothesis), []
    steps = table.tolist()
    while row or column:
        step = steps[row][column]
        row -= step != _INSERTION
        column -= step != _DELETION
        if step == _DIAGONAL:
            found.append("C" if reference[row] == hypothesis[column] else "S")
        else:
            found.append("I" if step == _INSERTION else "D")
    return "".join(reversed(found))
