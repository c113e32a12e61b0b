"""The text of a stream in segments: finished segments need not be kept."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

SEGMENT_TOKENS = 100  # at most, in a segment; the last one also holds the open tokens
_WORD_STARTS = ("\u2581", "<space>")  # of sentencepiece, of characters


class Partial(NamedTuple):
    """A text of the stream so far.

    Attributes:
        second: of audio that was heard.
        text: of the current segment.
        finished: it will not change any more, and what follows begins another segment.
    """

    second: float
    text: str
    finished: bool

    def line(self) -> str:
        """The line that commands print."""
        return f"{self.second:8.2f} s {'|' if self.finished else ''} {self.text}"


class Tokens(Protocol):
    """Names and texts of tokens."""

    def names_of(self, tokens: Sequence[int]) -> list[str]:
        """The name of each, as in the list of tokens."""
        ...

    def text_of(self, tokens: Sequence[int]) -> str:
        """Their text."""
        ...


class Segments:
    """Final tokens, until their segment is finished.

    A segment ends before the last of its tokens that begins a word, or, if none does (in a
    language without blanks), where it is full. The texts of all segments, one after another,
    are the text of all tokens: the blank between two begins the second.

    Attributes:
        tokens: final tokens of the unfinished segment.
        before: a token before it, since tokenizers drop the blank that a text begins with.
    """

    def __init__(self, known: Tokens):
        self.tokens: list[int] = []
        self._known = known
        self.before: list[int] = []

    def add(self, tokens: Sequence[int]) -> list[str]:
        """Add final tokens; return the texts of the segments that they finish."""
        self.tokens += tokens
        finished = []
        while len(self.tokens) > SEGMENT_TOKENS:
            size = self._size()
            done, self.tokens = self.tokens[:size], self.tokens[size:]
            finished.append(self._text(done))
            seen = (t for t in reversed(done) if self._known.text_of([t]).strip())
            self.before = next(([token] for token in seen), self.before)
        return finished

    def text(self, open_: Sequence[int] = ()) -> str:
        """Text of the unfinished segment: its final tokens, then the ``open_`` ones."""
        return self._text([*self.tokens, *open_])

    def _size(self) -> int:
        """Tokens of a segment that is full."""
        names = self._known.names_of(self.tokens[: SEGMENT_TOKENS + 1])
        starts = (i for i in range(SEGMENT_TOKENS, 0, -1) if names[i].startswith(_WORD_STARTS))
        return next(starts, SEGMENT_TOKENS)

    def _text(self, tokens: Sequence[int]) -> str:
        before = self._known.text_of(self.before)
        return self._known.text_of([*self.before, *tokens])[len(before) :]
