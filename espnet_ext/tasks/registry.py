"""Puts our classes into ESPnet's choices. The only module that knows how ESPnet stores them.

ESPnet's ``build_model`` reads module-global ``*_choices``; training processes re-import
their main module (spawn), so entry points call ``install()`` at import time.
"""

import functools

from espnet2.tasks import asr

from espnet_ext.encoders.compressed import compressed_choices
from espnet_ext.encoders.kaldi_fbank import KaldiFbank
from espnet_ext.encoders.streaming_transformer import StreamingTransformerEncoder
from espnet_ext.methods.registry import METHODS
from espnet_ext.models.asr import ASRModel
from espnet_ext.models.transducer import Predictor

# ESPnet encoders that are built of linear layers and pointwise convolutions, and are built
# from their options alone (no file of a pretrained model).
BASES = (
    "conformer",
    "transformer",
    "branchformer",
    "e_branchformer",
    "contextual_block_transformer",
    "contextual_block_conformer",
)
OWN = {"streaming_transformer": StreamingTransformerEncoder}


@functools.cache
def install() -> None:
    """Register encoders, frontend, predictor and model with ESPnet's ASR task. Idempotent."""
    stock = asr.encoder_choices.classes
    bases = {name: stock[name] for name in BASES} | OWN
    stock.update(OWN | compressed_choices(bases))
    asr.frontend_choices.classes["kaldi_fbank"] = KaldiFbank
    asr.decoder_choices.classes["transducer"] = Predictor
    asr.model_choices.classes["espnet"] = ASRModel


def stock_encoder(name: str) -> str:
    """Return the encoder under ``name``: hrf_conformer gives conformer."""
    # Both parts may hold underscores: the names are made again, not cut in two.
    return {f"{method}_{base}": base for method in METHODS for base in (*BASES, *OWN)}.get(
        name, name
    )
