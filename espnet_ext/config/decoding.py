"""The decoding methods of stage 6, ``recipe: {decode: {METHOD: {OPTION: VALUE}}}``."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any

from pydantic import Field
from pydantic.dataclasses import dataclass as checked

from espnet_ext.errors import UserError, nearest
from espnet_ext.validation import STRICT, parsed

CTC_GREEDY, CTC_BEAM = "ctc_greedy", "ctc_att_beam"
ATTENTION_GREEDY, ATTENTION_BEAM = "attention_greedy", "attention_beam"
ATTENTION_STREAM = "attention_stream"  # the first pass of a stream
TRANSDUCER = ("transducer_greedy", "transducer_beam")
CLASSIFY = "classify"

TOKENS_PER_SECOND = 6.0  # at most, in a text; people say 3 to 4

_Size = Annotated[int, Field(ge=1, description="a whole number of at least 1")]
_Rate = Annotated[float, Field(gt=0, description="a number above 0")]
_Weight = Annotated[float, Field(ge=0, le=1, description="a number from 0 to 1")]
_Ratio = Annotated[float, Field(ge=0, description="a number of at least 0")]


@checked(frozen=True, config=STRICT)
class NoOptions:
    """An utterance at a time; it has no options."""


@checked(frozen=True, config=STRICT)
class CTCBeam:
    """ESPnet's beam search by CTC and attention; of a model without a decoder by CTC alone.

    Attributes:
        beam_size: texts that are extended at each step.
        ctc_weight: of CTC's score; attention's has the rest.
        penalty: added to the score of a text for each token.
        maxlenratio: most tokens for each frame of the encoder; 0 means 1, and a negative number is
            the limit itself.
        minlenratio: fewest tokens for each frame.
    """

    beam_size: _Size = 10
    ctc_weight: _Weight = 0.3
    penalty: float = 0.0
    maxlenratio: float = 0.0
    minlenratio: _Ratio = 0.0


@checked(frozen=True, config=STRICT)
class AttentionStream:
    """The first pass of a stream, by Whisper's decoder.

    Attributes:
        tokens_per_second: most tokens of a text for each second of speech.
    """

    tokens_per_second: _Rate = TOKENS_PER_SECOND


@checked(frozen=True, config=STRICT)
class AttentionGreedy(AttentionStream):
    """The best token at each step, by Whisper's decoder.

    Attributes:
        batch_size: utterances that are searched together.
    """

    batch_size: _Size = 16


@checked(frozen=True, config=STRICT)
class AttentionBeam(AttentionStream):
    """Beam search by Whisper's decoder.

    Attributes:
        batch_size: utterances that are searched together, each with its texts.
        beam_size: texts that are extended at each step.
    """

    batch_size: _Size = 8
    beam_size: _Size = 5


@checked(frozen=True, config=STRICT)
class TransducerGreedy:
    """The best token at each step, of a transducer.

    Attributes:
        batch_size: utterances that are searched together.
    """

    batch_size: _Size = 16


@checked(frozen=True, config=STRICT)
class TransducerBeam(TransducerGreedy):
    """Beam search of a transducer.

    Attributes:
        beam_size: texts that are extended at each step.
    """

    beam_size: _Size = 4


DECODE: dict[str, type] = {
    CTC_GREEDY: NoOptions,
    CTC_BEAM: CTCBeam,
    ATTENTION_GREEDY: AttentionGreedy,
    ATTENTION_BEAM: AttentionBeam,
    ATTENTION_STREAM: AttentionStream,
    TRANSDUCER[0]: TransducerGreedy,
    TRANSDUCER[1]: TransducerBeam,
    CLASSIFY: NoOptions,
}


def decoding_options(method: str, options: Mapping[str, Any], where: str) -> Any:
    """Return the options of a method, with defaults.

    Raises:
        UserError: no such method, or a wrong option of it; its text begins with ``where``.
    """
    if method not in DECODE:
        raise UserError(f"{where}: no decoding method {nearest(method, DECODE)}")
    found, wrong = parsed(DECODE[method], options, f"{where}: {method}: ")
    for problem in wrong:
        raise UserError(problem)
    return found


def option_names(method: str) -> set[str]:
    """Names of the options of a method."""
    return {field.name for field in fields(DECODE[method])}
