"""ESPnet's ASR model: the compression method on the CTC output, and a transducer that runs.

Takes the place of ESPnet's own under the name ``espnet``: for a stock encoder and another
decoder than ``transducer`` it is that very model, and a deployed checkpoint loads into either.
"""

from typing import Any

from espnet2.asr.espnet_model import ESPnetASRModel
from torch import nn

from espnet_ext.models.transducer import use_transducer


class ASRModel(ESPnetASRModel):
    """ESPnetASRModel whose encoder may claim the classifier (site ``cls``)."""

    def __init__(self, joint_network: nn.Module | None = None, **conf: Any):
        decoder = conf["decoder"]
        super().__init__(joint_network=None, **conf)
        if joint_network is not None:
            use_transducer(self, decoder, joint_network)
        compress_head = getattr(self.encoder, "compress_head", None)
        if compress_head is not None and self.ctc is not None:
            compress_head(self.ctc.ctc_lo)
