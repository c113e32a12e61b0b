"""Utterances whose texts are longer than what the encoder leaves of them: CTC cannot align these.

Their loss is infinite, which ESPnet counts as 0, without a gradient: a training in which most are
of that kind ends well and has learnt nothing.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from espnet2.text.build_tokenizer import build_tokenizer

from espnet_ext.data.kaldi_dir import read_table
from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment

_SHOWN = 3


def check_ctc_lengths(experiment: Experiment, model: Any) -> None:
    """Count the utterances of the training and development sets that CTC cannot align.

    Some are printed. Sets without utt2dur are not looked at. ``check_inputs`` has checked the sets.

    Raises:
        UserError: most utterances of a set are such.
    """
    if getattr(model, "ctc", None) is None or not getattr(model, "ctc_weight", 0) > 0:
        return
    per_second, offset = output_frames(experiment, model)
    for name in experiment.sets:
        tokens = token_counts(experiment, name)
        durations = experiment.set_folder(name) / "utt2dur"
        seconds = read_table(durations) if durations.is_file() else {}
        found = []
        for utterance in sorted(tokens.keys() & seconds.keys()):
            needed = tokens[utterance]
            frames = max(0, int(per_second * float(seconds[utterance]) + offset + 1e-6))
            if needed > frames:
                found.append(f"{utterance}: {needed} tokens, {frames} frames")
        if found:
            some = "; ".join(found[:_SHOWN]) + ("; ..." if len(found) > _SHOWN else "")
            text = (
                f"CTC cannot align {len(found)} of {len(tokens)} utterances of data/{name} ({some})"
            )
            if 2 * len(found) > len(tokens):
                raise UserError(
                    f"{experiment.config.path}: {text}; subsample less (input_layer: conv2d) or "
                    "choose longer tokens (token_type: bpe, a larger vocabulary)"
                )
            print(f"train: {text}: they teach CTC nothing")


@torch.no_grad()
def output_frames(experiment: Experiment, model: Any) -> tuple[float, float]:
    """Return (a, b): of t seconds of audio the encoder leaves a t + b frames, rounded down."""
    noise = torch.Generator().manual_seed(0)
    frames = []
    for seconds in (2, 6):
        if model.frontend is None:  # its input is features from arks
            shape = [round(seconds * experiment.frames_per_second), experiment.feature_width or 1]
        else:
            shape = [seconds * experiment.rate]
        speech = 0.1 * torch.randn(1, *shape, generator=noise)
        frames.append(int(model.encode(speech, torch.tensor([speech.shape[1]]))[1][0]))
    per_second = (frames[1] - frames[0]) / 4
    return per_second, frames[0] - 2 * per_second


def token_counts(experiment: Experiment, name: str) -> dict[str, int]:
    """Return the frames that CTC needs for each text: its tokens, one more between equal ones."""
    kind = experiment.config.token_type
    tokenizer = build_tokenizer(kind, bpemodel=experiment.tokenizer)
    texts = read_table(experiment.require_references(name))
    return {utterance: needed_frames(tokenizer.text2tokens(t)) for utterance, t in texts.items()}


def needed_frames(tokens: Sequence[str] | Iterable[str]) -> int:
    """Return the least number of frames of a CTC alignment: a blank is between equal tokens."""
    listed = list(tokens)
    return len(listed) + sum(before == after for before, after in pairwise(listed))
