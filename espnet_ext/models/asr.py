"""ESPnet's ASR model, with the compression method applied to the CTC output when asked.

Takes the place of ESPnet's own under the name ``espnet``: for a stock encoder it is that
very model, and a deployed checkpoint loads into either.
"""

from typing import Any

from espnet2.asr.espnet_model import ESPnetASRModel


class ASRModel(ESPnetASRModel):
    """ESPnetASRModel whose encoder may claim the classifier (site ``cls``)."""

    def __init__(self, **conf: Any):
        super().__init__(**conf)
        compress_head = getattr(self.encoder, "compress_head", None)
        if compress_head is not None and self.ctc is not None:
            compress_head(self.ctc.ctc_lo)
