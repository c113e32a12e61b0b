"""Stacks of Whisper's encoder."""

import copy
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from espnet_ext.encoders.pretrained.chunk_mask import Chunks, chunk_mask
from espnet_ext.encoders.pretrained.stack import RATE
from espnet_ext.encoders.pretrained.transformers_stack import (
    LOAD_ERRORS,
    TransformersStack,
    attention_mask,
    first_line,
    mask_frames,
    random_model,
    read_model,
    summand,
)
from espnet_ext.errors import UserError
from espnet_ext.methods.tensors import frame_mask

ENCODER = "whisper_encoder"  # model type of folders that older versions of this package wrote
# transformers' AutoModel opens a Whisper as encoder and decoder, and draws what a folder lacks at
# random. So a stack is saved with the smallest decoder there is: no layers, one token, all zeros.
_NO_DECODER = {
    "decoder_layers": 0,
    "vocab_size": 1,
    "max_target_positions": 1,
    "pad_token_id": 0,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}


class WhisperStack(TransformersStack):
    """The encoder of Whisper: log-mel, two convolutions, then a pre-norm stack.

    ``x`` is the output of the convolutions, 50 frames a second. Speech may have any
    length up to 30 seconds; it is not padded to 30 seconds, which only Whisper's decoder expects.
    Whisper was trained on transcribed speech: it is not a self-supervised model.
    """

    layers_key, inner_width_key, width_key = "encoder_layers", "encoder_ffn_dim", "d_model"

    @property
    def architecture(self) -> dict[str, Any]:
        """That of the encoder, whatever decoder was next to it."""
        found = super().architecture
        of_decoder = {key for key in found if key.startswith("decoder_")} | _NO_DECODER.keys()
        return {key: value for key, value in found.items() if key not in of_decoder}

    def __init__(self, model: Any):
        """Wrap a WhisperEncoder."""
        from transformers import WhisperFeatureExtractor

        extractor = WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)
        super().__init__(model, "whisper", extractor)
        self.augment: nn.Module | None = None  # masks log-mel (batch, time, bins) in training
        self.chunks: Chunks | None = None  # within which the layers attend; None: everywhere

    @classmethod
    def read(cls, name: str, family: str, local: bool) -> Self:
        """Load the encoder from a folder that holds it alone, or from a whole model."""
        import transformers

        try:
            config = transformers.WhisperConfig.from_pretrained(name, local_files_only=local)
        except LOAD_ERRORS as error:
            raise UserError(f"{name}: {first_line(error)}") from None
        kind = (config.architectures or ["WhisperModel"])[0]
        if kind == "WhisperEncoder":
            return cls(read_model(_encoder_class(), name, local))
        whole = transformers.WhisperModel
        if kind == "WhisperForAudioClassification":
            whole = transformers.WhisperForAudioClassification
        return cls(read_model(whole, name, local).encoder)

    @classmethod
    def build(cls, family: str, conf: dict[str, Any]) -> Self:
        """Build a stack of random weights; ``conf`` has keys of config.json."""
        from transformers import WhisperConfig

        conf.pop("do_normalize", None)  # Whisper's features are always normalised
        return cls(random_model(WhisperConfig, _encoder_class(), conf))

    def _write(self, folder: Path) -> None:
        from transformers import WhisperModel

        config = type(self.model.config)(**self.model.config.to_dict() | _NO_DECODER)
        whole = WhisperModel(config)
        whole.encoder = self.model
        for weight in whole.decoder.parameters():
            weight.data.zero_()
        whole.save_pretrained(folder)
        self.extractor.save_pretrained(folder)

    @property
    def holder(self) -> Any:
        return self.model

    @property
    def body(self) -> list[nn.Module]:
        return [self.model.embed_positions, self.model.layers, self.model.layer_norm]

    @property
    def most_samples(self) -> int:
        """Samples of the longest speech that there are positions for."""
        return self.model.max_source_positions * 2 * self.extractor.hop_length

    def front(self, speech: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        most = self.most_samples
        if int(lengths.max()) > most:
            raise UserError(
                f"an utterance of {int(lengths.max()) / RATE:.1f} s is longer than the "
                f"{most / RATE:.0f} s that Whisper has positions for; cut it"
            )
        if int(lengths.min()) < self.extractor.n_fft:
            raise UserError(
                f"an utterance of {int(lengths.min())} samples is too short for whisper"
            )
        mels = [self.log_mel(w[:n]) for w, n in zip(speech, lengths.tolist(), strict=True)]
        sizes = torch.tensor([len(mel) for mel in mels], device=speech.device)
        mel = pad_sequence(mels, batch_first=True)
        if self.augment is not None and self.training:
            mel, _ = self.augment(mel, sizes)
        return self.convolved(mel, sizes)

    def convolved(self, mel: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """The output of the convolutions for log-mel (batch, time, bins), and its lengths."""
        # A convolution pads with zeros; the second must find zeros after a shorter utterance.
        inner = F.gelu(self.model.conv1(mel.transpose(1, 2)))
        inner = inner.masked_fill(~frame_mask(sizes, mel.shape[1]).unsqueeze(1), 0.0)
        x = F.gelu(self.model.conv2(inner)).transpose(1, 2)
        frames = (sizes + 1) // 2
        return mask_frames(x, frames), frames

    def log_mel(self, wave: Tensor) -> Tensor:
        """Log-mel (time, bins) of one wave (samples,), by the extractor of transformers."""
        with torch.autocast("cpu", enabled=False):  # the extractor converts to numpy
            found = self.extractor(
                wave.detach().float().cpu().numpy(),
                sampling_rate=RATE,
                padding="longest",
                truncation=False,
                return_tensors="pt",
            )
        return found["input_features"][0].T.to(wave.device, self.model.conv1.weight.dtype)

    def enter(self, x: Tensor, lengths: Tensor) -> Tensor:
        h = x + self.model.embed_positions.weight[: x.shape[1]]
        return F.dropout(h, p=self.model.dropout, training=self.training)

    def finish(self, h: Tensor) -> Tensor:
        return self.model.layer_norm(h)

    def repeat(self, times: int) -> None:
        if not isinstance(times, int) or isinstance(times, bool) or times < 1:
            raise UserError(f"encoder: stack: repeat must be a whole number from 1, not {times!r}")
        layers: list[Any] = [copy.deepcopy(x) for x in self.layers for _ in range(times)]
        with torch.no_grad():
            for layer in layers:
                for tensor in [*layer.self_attn.out_proj.parameters(), *layer.fc2.parameters()]:
                    tensor.div_(times)
        self.model.layers = nn.ModuleList(layers)
        self.kept = tuple(range(len(layers)))
        self.model.config.encoder_layers = len(layers)

    def drop_mimicked(self, entrance: bool) -> None:
        if entrance:
            self.model.layers = nn.ModuleList()
            self.model.embed_positions = nn.Identity()
        self.model.layer_norm = nn.Identity()

    def _context(self, h: Tensor, lengths: Tensor) -> Tensor | None:
        if self.chunks is None or not self.chunks.active(self.training):
            return attention_mask(h, lengths)
        frames = h.shape[1]
        seen = chunk_mask(frames, self.chunks.geometry, h.device)
        seen = seen & frame_mask(lengths, frames, h.device).unsqueeze(1)
        # Frames after the end attend to themselves: a row without any would give NaN.
        seen = seen | torch.eye(frames, dtype=torch.bool, device=h.device)
        return summand(seen, h).unsqueeze(1)

    def _step(self, layer: nn.Module, h: Tensor, context: Any) -> Tensor:
        return layer(h, context)


def _encoder_class() -> Any:
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    return WhisperEncoder
