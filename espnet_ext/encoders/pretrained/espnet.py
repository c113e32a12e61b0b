"""Stacks of ESPnet's own encoders, as stage 5 of our recipes writes them."""

import copy
import importlib
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from espnet_ext.encoders.kaldi_fbank import KaldiFbank
from espnet_ext.encoders.pretrained.stack import RATE, Stack
from espnet_ext.errors import UserError, nearest
from espnet_ext.files import atomic_path, read_json, write_json
from espnet_ext.formats.state_dict import compare_state, load_state

# Encoders made of an input layer, positions and layers of one width.
_ENCODERS = {
    "branchformer": "branchformer_encoder:BranchformerEncoder",
    "conformer": "conformer_encoder:ConformerEncoder",
    "e_branchformer": "e_branchformer_encoder:EBranchformerEncoder",
    "transformer": "transformer_encoder:TransformerEncoder",
}
_STATISTICS = "feats_stats.npz"
_FEATURES = "features.json"  # what the frontend was; a deployed model takes features


class ESPnetStack(Stack):
    """An encoder of ESPnet with the features and the normalisation that it was trained on.

    ``x`` is the output of the input layer (subsampling); ``enter`` adds or makes positions.
    ESPnet's convolutions see the padding of a batch, so near its end a short utterance gives
    in a batch what ESPnet gives there, not quite what it gives alone.
    """

    def __init__(
        self, encoder: Any, frontend: nn.Module, normalize: nn.Module | None, source: dict[str, Any]
    ):
        """Wrap an encoder.

        Args:
            encoder: one of ``_ENCODERS``.
            frontend: samples to features.
            normalize: of the features.
            source: what ``save`` writes again: arguments (config.yaml), state (all tensors of the
                model but the encoder's), folder.
        """
        super().__init__(source["arguments"]["encoder"], len(encoder.encoders))
        self.frontend = frontend
        self.normalize = normalize
        self.encoder = encoder
        self.source = source
        # The input layer ends with the positions; ``enter`` calls them apart.
        self.embed, self.positions = _split(encoder.embed)

    @property
    def layers(self) -> nn.ModuleList:
        """The layers still there."""
        return self.encoder.encoders

    @property
    def width(self) -> int:
        """Features of a frame."""
        return self.encoder.output_size()

    def front(self, speech: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Output of the input layer; see ``Stack.front`` and the class about padding."""
        x, lengths = self.frontend(speech, lengths)
        if self.normalize is not None:
            x, lengths = self.normalize(x, lengths)
        inside = (torch.arange(x.shape[1], device=x.device) < lengths.unsqueeze(1)).unsqueeze(1)
        if isinstance(self.embed, nn.Sequential | nn.Linear):
            return self.embed(x), lengths
        try:
            x, inside = self.embed(x, inside)
        except RuntimeError as error:  # a convolution wider than what it gets
            if "Kernel size" not in str(error):
                raise
            shortest = int(lengths.max())
            raise UserError(f"{shortest} frames are too short for {self.family}") from None
        return x, inside.squeeze(1).sum(1)

    def enter(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Scale, and add positions where they are absolute; see ``Stack.enter``."""
        found = self.positions(x)
        return found[0] if isinstance(found, tuple) else found

    def finish(self, h: Tensor) -> Tensor:
        """Apply the final norm, which post-norm Conformers and Transformers lack."""
        has_norm = getattr(self.encoder, "normalize_before", True)
        return self.encoder.after_norm(h) if has_norm else h

    def _context(self, h: Tensor, lengths: Tensor) -> tuple[Tensor | None, Tensor]:
        inside = torch.arange(h.shape[1], device=h.device) < lengths.to(h.device).unsqueeze(1)
        found = self.positions(h)
        return (found[1] if isinstance(found, tuple) else None), inside.unsqueeze(1)

    def _step(self, layer: nn.Module, h: Tensor, context: Any) -> Tensor:
        positions, mask = context
        found = layer(h if positions is None else (h, positions), mask)[0]
        return found[0] if isinstance(found, tuple) else found

    def _keep(self, places: Sequence[int]) -> None:
        # ESPnet's container of layers is made by its constructor alone.
        layers = copy.copy(self.encoder.encoders)
        kept = [self.encoder.encoders[place] for place in places]
        layers._modules = {str(place): layer for place, layer in enumerate(kept)}
        self.encoder.encoders = layers
        source = self.source = {**self.source, "arguments": dict(self.source["arguments"])}
        conf = dict(source["arguments"].get("encoder_conf") or {})
        conf["num_blocks"] = len(places)
        if conf.pop("interctc_layer_idx", None):  # a loss of training, at layers of other numbers
            model = source["arguments"].get("model_conf") or {}
            source["arguments"]["model_conf"] = {**model, "interctc_weight": 0.0}
        for key, value in conf.items():  # options that have a value for each layer
            if key in _BY_LAYER and isinstance(value, list):
                conf[key] = [value[place] for place in places]
        source["arguments"]["encoder_conf"] = conf

    def save(self, folder: str | Path) -> None:
        """Write config.yaml, model.pth and feats_stats.npz of the whole model for stock ESPnet.

        The model's other parts (CTC, decoder, head) are those of the model that was loaded.
        """
        folder = Path(folder)
        arguments = copy.deepcopy(self.source["arguments"])
        state = dict(self.source["state"])
        state |= {f"encoder.{k}": v.detach().clone() for k, v in self.encoder.state_dict().items()}
        with atomic_path(folder) as temporary:
            temporary.mkdir(parents=True)
            if self.source["statistics"] is not None:
                shutil.copyfile(self.source["statistics"], temporary / _STATISTICS)
                arguments["normalize_conf"]["stats_file"] = str(folder / _STATISTICS)
            torch.save(state, temporary / "model.pth")
            text = yaml.safe_dump(arguments, sort_keys=False, allow_unicode=True)
            (temporary / "config.yaml").write_text(text, encoding="utf-8")
            write_json(temporary / _FEATURES, self.source["features"])


_BY_LAYER = ("stochastic_depth_rate", "cgmlp_weight", "attn_branch_drop_rate")


def load_espnet(path: Path) -> ESPnetStack:
    """Load ``exp/<tag>`` (its deployed form) or a folder that stage 5 or ``save`` wrote.

    Raises:
        UserError: see ``stack.load_stack``.
    """
    folder = _deployed(path)
    arguments = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    name = arguments.get("encoder")
    if name not in _ENCODERS:
        raise UserError(
            f"{folder}: no stack of equal layers in encoder {nearest(str(name), _ENCODERS)}"
        )
    conf = arguments.get("encoder_conf") or {}
    if conf.get("interctc_use_conditioning"):
        raise UserError(f"{folder}: layers conditioned on CTC cannot be run one by one")
    features = _features(folder, arguments)
    frontend = _frontend(folder, features)
    statistics = folder / _STATISTICS
    normalize = _normalize(arguments, statistics)
    module, _, attribute = _ENCODERS[name].partition(":")
    encoder_class = getattr(importlib.import_module(f"espnet2.asr.encoder.{module}"), attribute)
    try:
        encoder = encoder_class(input_size=frontend.output_size(), **conf)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"{folder}/config.yaml: the encoder does not build: {error}") from None
    state = load_state(folder / "model.pth")
    own = {re.sub(r"^encoder\.", "", k): v for k, v in state.items() if k.startswith("encoder.")}
    compare_state(encoder, own, folder / "model.pth")
    encoder.load_state_dict(own)
    source = {
        "arguments": arguments,
        "state": {k: v for k, v in state.items() if not k.startswith("encoder.")},
        "statistics": statistics if statistics.is_file() else None,
        "features": features,
    }
    return ESPnetStack(encoder, frontend, normalize, source).eval()


def _deployed(path: Path) -> Path:
    """The folder with the plain model: ``path`` itself or its deploy/merged, deploy/plain."""
    for folder in (path / "deploy" / "merged", path / "deploy" / "plain", path):
        if (folder / "config.yaml").is_file() and (folder / "model.pth").is_file():
            return folder
    raise UserError(f"no plain model in {path}; run stage 5 with --variant merged")


def _features(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """Frontend and its options: of the model, or of the experiment that it was deployed from."""
    # With the width of features given ESPnet builds no frontend, whatever its name.
    if arguments.get("frontend") is not None and arguments.get("input_size") is None:
        return {"frontend": arguments["frontend"], **(arguments.get("frontend_conf") or {})}
    if (folder / _FEATURES).is_file():
        return read_json(folder / _FEATURES)
    trained = folder.parent.parent / "resolved.json"
    conf: dict[str, Any] = {}
    if trained.is_file():
        conf = read_json(trained).get("frontend_conf") or {}
    deltas = conf.get("deltas", 0)
    bins = arguments["input_size"] // (1 + deltas)
    return {"frontend": "kaldi_fbank", "fs": RATE, **conf, "n_mels": bins, "deltas": deltas}


def _frontend(folder: Path, features: dict[str, Any]) -> Any:
    import humanfriendly
    from espnet2.asr.frontend.default import DefaultFrontend

    conf = {key: value for key, value in features.items() if key != "frontend"}
    rate = conf.get("fs", RATE)
    if (humanfriendly.parse_size(rate) if isinstance(rate, str) else rate) != RATE:
        raise UserError(f"{folder}: a stack takes speech of {RATE} Hz, this model wants {rate}")
    known = {"kaldi_fbank": KaldiFbank, "default": DefaultFrontend}
    if features["frontend"] not in known:
        raise UserError(f"{folder}: unknown frontend {nearest(str(features['frontend']), known)}")
    return known[features["frontend"]](**conf)


def _normalize(arguments: dict[str, Any], statistics: Path) -> nn.Module | None:
    from espnet2.layers.global_mvn import GlobalMVN
    from espnet2.layers.utterance_mvn import UtteranceMVN

    conf = {k: v for k, v in (arguments.get("normalize_conf") or {}).items() if k != "stats_file"}
    kind = arguments.get("normalize")
    if kind == "global_mvn":
        if not statistics.is_file():
            raise UserError(f"no {statistics}; run stage 5")
        return GlobalMVN(str(statistics), **conf)
    return UtteranceMVN(**conf) if kind == "utterance_mvn" else None


def _split(embed: Any) -> tuple[nn.Module, nn.Module]:
    """An input layer without its positions, and the positions; tensors are shared."""
    shared: dict[int, Any] = {id(t): t for t in [*embed.parameters(), *embed.buffers()]}
    if isinstance(embed, nn.Sequential):
        return copy.deepcopy(embed[:-1], shared), embed[-1]
    if not hasattr(embed, "pos_enc"):
        raise UserError(f"no positions in the input layer {type(embed).__name__}")
    without = copy.deepcopy(embed, shared)
    without.pos_enc = nn.Identity()
    return without, embed.pos_enc
