"""Word and character error rates with their alignments: a thin layer over jiwer."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import jiwer
import numpy as np

CHUNK = 5_000  # utterances whose alignments are in memory at once


@dataclass(frozen=True)
class Errors:
    """Error counts per utterance; every array is of integers, shape (utterances,)."""

    substitutions: np.ndarray
    insertions: np.ndarray
    deletions: np.ndarray
    lengths: np.ndarray  # tokens of the reference

    @property
    def totals(self) -> np.ndarray:
        """Errors per utterance, shape (utterances,)."""
        return self.substitutions + self.insertions + self.deletions

    @property
    def rate(self) -> float:
        """Pooled error rate: all errors over all reference tokens, as a fraction."""
        return float(self.totals.sum() / self.lengths.sum())


@dataclass(frozen=True)
class Aligned:
    """Error counts, and the tokens and edits of each utterance that they were counted from."""

    errors: Errors
    references: list[list[str]]
    hypotheses: list[list[str]]
    edits: list[list[jiwer.AlignmentChunk]]


def align_words(references: Sequence[str], hypotheses: Sequence[str]) -> Aligned:
    """Align normalised texts word by word (Levenshtein distance, all costs 1)."""
    return _aligned(jiwer.process_words(list(references), list(hypotheses)))


def align_characters(references: Sequence[str], hypotheses: Sequence[str]) -> Aligned:
    """Align normalised texts character by character; the blank between words is one of them."""
    return _aligned(jiwer.process_characters(list(references), list(hypotheses)))


def count_errors(
    align: Callable[[Sequence[str], Sequence[str]], Aligned],
    references: Sequence[str],
    hypotheses: Sequence[str],
    seen: Callable[[int, Aligned], None] | None = None,
) -> Errors:
    """Count errors in bounded memory: only some thousand alignments are held at once.

    Args:
        align: ``align_words`` or ``align_characters``.
        references: normalised texts.
        hypotheses: normalised texts.
        seen: called with each part of the alignments and the number of its first utterance.
    """
    parts = []
    for start in range(0, len(references), CHUNK):
        chunk = slice(start, start + CHUNK)
        aligned = align(references[chunk], hypotheses[chunk])
        if seen is not None:
            seen(start, aligned)
        parts.append(aligned.errors)
    names = ("substitutions", "insertions", "deletions", "lengths")
    return Errors(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _aligned(output: jiwer.WordOutput | jiwer.CharacterOutput) -> Aligned:
    counts = np.zeros((3, len(output.references)), dtype=np.int64)
    rows = {"substitute": 0, "insert": 1, "delete": 2}
    for column, chunks in enumerate(output.alignments):
        for chunk in chunks:
            if chunk.type in rows:
                # An insertion has no width in the reference, a deletion none in the hypothesis.
                width = max(
                    chunk.ref_end_idx - chunk.ref_start_idx,
                    chunk.hyp_end_idx - chunk.hyp_start_idx,
                )
                counts[rows[chunk.type], column] += width
    lengths = np.array([len(tokens) for tokens in output.references], dtype=np.int64)
    return Aligned(
        errors=Errors(counts[0], counts[1], counts[2], lengths),
        references=output.references,
        hypotheses=output.hypotheses,
        edits=output.alignments,
    )


def alignment_lines(ids: Sequence[str], aligned: Aligned) -> Iterable[str]:
    """Yield the alignment in the format of Kaldi's ``wer_per_utt_details.pl``.

    Four lines per utterance: ``ref``, ``hyp``, ``op`` (C, S, I, D under each token, ``***``
    where a side has none) and ``#csid`` (how many of each).
    """
    for index, name in enumerate(ids):
        reference, hypothesis = aligned.references[index], aligned.hypotheses[index]
        columns: list[tuple[str, str, str]] = []
        for chunk in aligned.edits[index]:
            left = reference[chunk.ref_start_idx : chunk.ref_end_idx]
            right = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
            letter = "C" if chunk.type == "equal" else chunk.type[0].upper()
            left += ["***"] * (len(right) - len(left))
            right += ["***"] * (len(left) - len(right))
            columns += [(a, b, letter) for a, b in zip(left, right, strict=True)]
        widths = [max(map(len, column)) for column in columns]
        for row, label in enumerate(("ref", "hyp", "op")):
            cells = [c[row].ljust(w) for c, w in zip(columns, widths, strict=True)]
            yield f"{name} {label:5} {' '.join(cells)}".rstrip()
        operations = [column[2] for column in columns]
        yield f"{name} #csid {' '.join(str(operations.count(letter)) for letter in 'CSID')}"
