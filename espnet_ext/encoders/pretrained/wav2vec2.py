"""Stacks of wav2vec 2.0, HuBERT and WavLM."""

import json
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from espnet_ext.encoders.pretrained.stack import RATE
from espnet_ext.encoders.pretrained.transformers_stack import (
    LOAD_ERRORS,
    TransformersStack,
    attention_mask,
    mask_frames,
    random_model,
    read_model,
)
from espnet_ext.errors import UserError
from espnet_ext.methods.tensors import frame_mask

_EXTRACTOR_CONFIG = "preprocessor_config.json"
_NORMALISE = "do_normalize"  # its key


class Wav2Vec2Stack(TransformersStack):
    """wav2vec 2.0, HuBERT or WavLM: convolutions over samples, then the stack.

    ``x`` is the output of the feature projection; ``enter`` adds the positional convolution and,
    in post-norm models, normalises.
    """

    layers_key, inner_width_key = "num_hidden_layers", "intermediate_size"
    width_key = "hidden_size"

    def __init__(self, model: Any, family: str, normalise: bool):
        """Wrap ``model`` (Wav2Vec2Model, HubertModel, WavLMModel).

        ``normalise``: bring each utterance to mean 0 and variance 1 first, as the model's
        feature extractor does.
        """
        from transformers import Wav2Vec2FeatureExtractor

        extractor = Wav2Vec2FeatureExtractor(do_normalize=normalise, sampling_rate=RATE)
        super().__init__(model, family, extractor)
        self.normalise = normalise
        self.pre_norm = bool(model.config.do_stable_layer_norm)
        if family == "wavlm":
            self.protected = {0: "WavLM's first layer makes the position bias of the later ones"}

    def extra_repr(self) -> str:
        """Setting that no tensor shows; ``frozen_cache.digest`` reads it."""
        return f"normalise={self.normalise}"

    @classmethod
    def read(cls, name: str, family: str, local: bool) -> Self:
        """Load a folder, or a model of the hub if not ``local``."""
        return cls(read_model(_classes(family)[1], name, local), family, _normalises(name, local))

    @classmethod
    def build(cls, family: str, conf: dict[str, Any]) -> Self:
        """Build a stack of random weights; ``conf`` has keys of config.json and do_normalize."""
        normalise = bool(conf.pop(_NORMALISE, True))
        return cls(random_model(*_classes(family), conf), family, normalise)

    @property
    def holder(self) -> Any:
        return self.model.encoder

    @property
    def body(self) -> list[nn.Module]:
        return [self.model.encoder]

    @property
    def architecture(self) -> dict[str, Any]:
        return {**super().architecture, _NORMALISE: self.normalise}

    def front(self, speech: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        config, frames = self.model.config, self._counted(lengths)
        if int(frames.min()) < 1:
            raise UserError(
                f"an utterance of {int(lengths.min())} samples is too short for {self.family}"
            )
        waves = [wave[:size] for wave, size in zip(speech, lengths.tolist(), strict=True)]
        waves = [self.normalised(wave) for wave in waves]
        if config.feat_extract_norm == "group":
            # Its statistics are over time: padding must not enter them.
            found = [self._frames(wave.unsqueeze(0))[0] for wave in waves]
            return pad_sequence(found, batch_first=True), frames
        x = self._frames(pad_sequence(waves, batch_first=True))[:, : int(frames.max())]
        return mask_frames(x, frames), frames

    def normalised(self, wave: Tensor) -> Tensor:
        """A wave (..., samples) with mean 0 and variance 1, if the model wants that."""
        if not self.normalise:
            return wave
        wave = wave.to(torch.promote_types(wave.dtype, torch.float32))
        variance = wave.var(-1, correction=0, keepdim=True)
        return (wave - wave.mean(-1, keepdim=True)) / torch.sqrt(variance + 1e-7)

    def convolved(self, waves: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """``front`` of one normalised utterance (1, samples, 1) and its length (1,)."""
        return self._frames(waves.squeeze(-1)), self._counted(lengths)

    def _counted(self, frames: Tensor) -> Tensor:
        """Frames of so many samples."""
        config = self.model.config
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            frames = torch.div(frames - kernel, stride, rounding_mode="floor") + 1
        return frames

    def _frames(self, waves: Tensor) -> Tensor:
        """Convolutions and projection: (batch, samples) to (batch, time, width)."""
        features = self.model.feature_extractor(waves.contiguous()).transpose(1, 2)
        projected = self.model.feature_projection(features)
        return projected[0] if isinstance(projected, tuple) else projected

    def enter(self, x: Tensor, lengths: Tensor) -> Tensor:
        encoder = self.model.encoder
        x = mask_frames(x, lengths)
        h = x + encoder.pos_conv_embed(x)
        return encoder.dropout(h if self.pre_norm else encoder.layer_norm(h))

    def finish(self, h: Tensor) -> Tensor:
        return self.model.encoder.layer_norm(h) if self.pre_norm else h

    def drop_mimicked(self, entrance: bool) -> None:
        encoder = self.model.encoder
        self.model.masked_spec_embed = None  # of pre-training
        if entrance:
            encoder.layers = nn.ModuleList()
            encoder.pos_conv_embed = nn.Identity()
        if entrance or self.pre_norm:
            encoder.layer_norm = nn.Identity()

    def _context(self, h: Tensor, lengths: Tensor) -> dict[str, Any]:
        if self.family != "wavlm":
            return {"attention_mask": attention_mask(h, lengths)}
        attention: Any = self.layers[0].attention
        bias = attention.compute_bias(h.shape[1], h.shape[1])
        bias = bias.repeat(h.shape[0], 1, 1)  # (batch * heads, time, time)
        inside = frame_mask(lengths, h.shape[1], h.device)
        return {"attention_mask": None if inside.all() else inside, "position_bias": bias}

    def _step(self, layer: nn.Module, h: Tensor, context: Any) -> Tensor:
        found = layer(h, **context)
        return found[0] if isinstance(found, tuple) else found


def _classes(family: str) -> tuple[Any, Any]:
    """Return the classes of config and model."""
    import transformers

    return {
        "wav2vec2": (transformers.Wav2Vec2Config, transformers.Wav2Vec2Model),
        "hubert": (transformers.HubertConfig, transformers.HubertModel),
        "wavlm": (transformers.WavLMConfig, transformers.WavLMModel),
    }[family]


def _normalises(name: str, local: bool) -> bool:
    """True if the model's utterances have mean 0 and variance 1, the default of transformers."""
    if not local:
        from transformers import Wav2Vec2FeatureExtractor

        try:
            return bool(Wav2Vec2FeatureExtractor.from_pretrained(name).do_normalize)
        except LOAD_ERRORS:
            return True
    path = Path(name, _EXTRACTOR_CONFIG)
    if not path.is_file():
        return True
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")).get(_NORMALISE, True))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
