"""ESPnet's ``token_type: hugging_face`` for tokens of pretrained speech models.

ESPnet's classes call transformers' AutoTokenizer, and write the first word of a text without
the blank that Whisper's tokens begin with.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from espnet2.bin import asr_inference
from espnet2.text import build_tokenizer
from espnet2.text.abs_tokenizer import AbsTokenizer
from espnet2.train import preprocessor

from espnet_ext.data.tokenizer import Tokenizer


class PretrainedTokens(AbsTokenizer):
    """ESPnet's tokenizer on a folder with tokenizer.json."""

    def __init__(self, model: Path | str):
        self.tokenizer = Tokenizer(model)

    def text2tokens(self, line: str) -> list[str]:
        """Tokens of a text."""
        return self.tokenizer.tokens(line)

    def tokens2text(self, tokens: Iterable[str]) -> str:
        """Text of tokens."""
        return self.tokenizer.text(tokens)


class PretrainedIDs:
    """ESPnet's converter of tokens and ids, on the same folder."""

    def __init__(self, model_name_or_path: Path | str):
        self.tokenizer = Tokenizer(model_name_or_path)

    def ids2tokens(self, integers: Any) -> list[str]:
        """Tokens of ids."""
        return self.tokenizer.names(np.asarray(integers).tolist())

    def tokens2ids(self, tokens: Iterable[str]) -> list[int]:
        """Ids of tokens."""
        return self.tokenizer.ids(tokens)


def install_tokens() -> None:
    """Let ESPnet's trainer and inference use these classes."""
    build_tokenizer.HuggingFaceTokenizer = PretrainedTokens
    preprocessor.HuggingFaceTokenIDConverter = PretrainedIDs
    asr_inference.HuggingFaceTokenIDConverter = PretrainedIDs
