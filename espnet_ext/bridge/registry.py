"""Registers our classes in ESPnet's choices; the only module that knows how ESPnet stores them.

ESPnet's ``build_model`` reads module-global ``*_choices``; training processes re-import
their main module (spawn), so entry points call ``install()`` at import time.
"""

import argparse
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from espnet2.tasks import asr, cls
from espnet2.tasks.abs_task import AbsTask
from espnet2.train.dataset import DATA_TYPES, AdapterForSoundScpReader
from torch import nn

from espnet_ext.bridge.pretrained_tokens import install_tokens
from espnet_ext.data.arks import Arks
from espnet_ext.encoders.compressed import (
    compress_head,
    compressed_choices,
    compressed_encoder,
)
from espnet_ext.encoders.depthwise_subsampling import with_depthwise_subsampling
from espnet_ext.encoders.frames import FramesEncoder
from espnet_ext.encoders.frontends import KaldiFbank, RawSpeech, SSLFeatures
from espnet_ext.encoders.pretrained.encoder import StackEncoder
from espnet_ext.encoders.speechformer import SpeechFormerEncoder
from espnet_ext.encoders.streaming_conformer import StreamingConformerEncoder
from espnet_ext.encoders.streaming_transformer import StreamingTransformerEncoder
from espnet_ext.methods.registry import METHODS
from espnet_ext.models.asr import ASRModel
from espnet_ext.models.cls import MLPDecoder
from espnet_ext.models.transducer import Predictor
from espnet_ext.models.whisper_decoder import WhisperDecoder

# ESPnet encoders that are built of linear layers and pointwise convolutions, and are built
# from their options alone (no file of a pretrained model).
ESPNET_BASES = (
    "conformer",
    "transformer",
    "branchformer",
    "e_branchformer",
    "contextual_block_transformer",
    "contextual_block_conformer",
)
# Those of them that can begin with ESPnet's two-dimensional convolutions.
CONV2D_BASES = ("conformer", "transformer", "branchformer", "e_branchformer")
RECURRENT_BASES = ("rnn", "vgg_rnn")
OWN_BASES = {
    "speechformer": SpeechFormerEncoder,
    "streaming_conformer": StreamingConformerEncoder,
    "streaming_transformer": StreamingTransformerEncoder,
}
BASES = (*ESPNET_BASES, *RECURRENT_BASES, *OWN_BASES)
FRAMES = "frames"  # the encoder without layers
HEAD_METHODS = ("hrf",)  # those that can be applied to a head alone, whose encoder has no layers


class CLSTask(cls.CLSTask):
    """ESPnet's classification, with the compression method on the head when asked.

    ESPnet names the model's class in its code, so the head is reached when the model is built.
    """

    @classmethod
    def build_model(cls, args: argparse.Namespace) -> nn.Module:
        """Build the model as ESPnet does, then apply the method to its head."""
        model = super().build_model(args)
        compress_head(model.encoder, model.decoder)
        return model


# Translation is ESPnet's asr task trained on the target's text, which is how the paper translates
# (arXiv 2310.02489, section 3). ESPnet's st task accepts a transducer only with warprnnt_pytorch,
# which no registry has, and what it adds, losses on the source's text, the paper does not have.
TASKS: dict[str, type[AbsTask]] = {"asr": asr.ASRTask, "st": asr.ASRTask, "cls": CLSTask}


def task_of(arguments: Mapping[str, Any]) -> str:
    """Name of the ESPnet task of a config.yaml, which does not name it: only asr has CTC.

    A translating model is one of asr.
    """
    return "asr" if "ctc_conf" in arguments else "cls"


def checked_arks(path: str, float_dtype: str | None = None, **more: Any) -> Any:
    """ESPnet's reader of a ``feats.scp``, over matrices whose check sums are compared."""
    more.pop("max_cache_fd", None)  # files are opened for each matrix, as by default
    return AdapterForSoundScpReader(Arks(Path(path)), float_dtype, **more)


@functools.cache
def install() -> None:
    """Register encoders, frontend, models, predictor and heads with ESPnet's tasks. Idempotent."""
    DATA_TYPES["kaldi_ark"]["func"] = checked_arks
    espnet = (*ESPNET_BASES, *RECURRENT_BASES)
    bases = {name: asr.encoder_choices.classes[name] for name in espnet} | OWN_BASES
    bases |= {name: with_depthwise_subsampling(bases[name]) for name in CONV2D_BASES}
    compressed = compressed_choices(bases, RECURRENT_BASES)
    for task in (asr, cls):
        task.encoder_choices.classes.update({**bases, **compressed})
        task.encoder_choices.classes["stack"] = StackEncoder
        task.encoder_choices.classes[FRAMES] = FramesEncoder
        for name in HEAD_METHODS:
            head = compressed_encoder(FramesEncoder, METHODS[name])
            task.encoder_choices.classes[f"{name}_{FRAMES}"] = head
        task.frontend_choices.classes["raw"] = RawSpeech
        task.frontend_choices.classes["kaldi_fbank"] = KaldiFbank
        task.frontend_choices.classes["ssl"] = SSLFeatures
    asr.decoder_choices.classes["transducer"] = Predictor
    asr.decoder_choices.classes["whisper"] = WhisperDecoder
    asr.model_choices.classes["espnet"] = ASRModel
    cls.decoder_choices.classes["mlp"] = MLPDecoder
    install_tokens()


def compressed_names() -> dict[str, tuple[str, str]]:
    """Method and plain encoder by the name of a compressed one: hrf_conformer: hrf, conformer."""
    heads = {f"{name}_{FRAMES}": (name, FRAMES) for name in HEAD_METHODS}
    return heads | {
        f"{prefix}_{base}": (prefix, base)
        for prefix, method in METHODS.items()
        for base in BASES
        if method.fits(base, base in RECURRENT_BASES)
    }


def stock_encoder(name: str) -> str:
    """Return the plain encoder of a compressed one: hrf_conformer gives conformer."""
    return compressed_names().get(name, ("", name))[1]
