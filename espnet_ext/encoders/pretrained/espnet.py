"""Stacks of ESPnet's encoders, as stage 5 of our recipes writes them."""

import copy
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from espnet_ext.config.pretrained import deployed_folder
from espnet_ext.data.features import KALDI
from espnet_ext.encoders.frontends import KaldiFbank
from espnet_ext.encoders.pretrained.stack import RATE, Stack, copy_sharing_tensors
from espnet_ext.errors import UserError, nearest
from espnet_ext.files import atomic_path, read_json, write_json
from espnet_ext.formats.building import building
from espnet_ext.formats.digests import read_config, refuse_changed
from espnet_ext.formats.portable import STATISTICS, gather
from espnet_ext.formats.state_dict import compare_state, load_state
from espnet_ext.methods.tensors import frame_mask

# Encoders made of an input layer, positions and layers of one width.
_ENCODERS = {
    "branchformer": "BranchformerEncoder",
    "conformer": "ConformerEncoder",
    "e_branchformer": "EBranchformerEncoder",
    "transformer": "TransformerEncoder",
}
# Options with one value for each layer.
_BY_LAYER = ("stochastic_depth_rate", "cgmlp_weight", "attn_branch_drop_rate")
_FEATURES = "features.json"  # the frontend, which the config of a deployed model does not name


class ESPnetStack(Stack):
    """An encoder of ESPnet with the features and the normalisation that it was trained on.

    ``x`` is the output of the input layer (subsampling); ``enter`` adds or computes positions.
    ESPnet's convolutions see the padding of a batch: near its end, a short utterance gives in a
    batch what it gives in ESPnet, not exactly what it gives alone.
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
                model but the encoder's), features (features.json).
        """
        super().__init__(source["arguments"]["encoder"], len(encoder.encoders))
        self.frontend = frontend
        self.normalize = normalize
        self.encoder = encoder
        self.source = source
        # ESPnet's input layer ends with the positions; ``enter`` calls them separately.
        self.embed, self.positions = _split(encoder.embed)

    @property
    def layers(self) -> nn.ModuleList:
        return self.encoder.encoders

    @property
    def width(self) -> int:
        return self.encoder.output_size()

    @property
    def body(self) -> list[nn.Module]:
        after = getattr(self.encoder, "after_norm", None)
        return [self.positions, self.layers, *([] if after is None else [after])]

    def front(self, speech: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x, lengths = self.frontend(speech, lengths)
        if self.normalize is not None:
            x, lengths = self.normalize(x, lengths)
        if isinstance(self.embed, nn.Sequential | nn.Linear):
            return self.embed(x), lengths
        try:
            x, inside = self.embed(x, frame_mask(lengths, x.shape[1]).unsqueeze(1))
        except RuntimeError as error:  # a kernel wider than its input
            if "Kernel size" not in str(error):
                raise
            raise UserError(
                f"{int(lengths.max())} frames are too short for {self.family}"
            ) from None
        return x, inside.squeeze(1).sum(1)

    def enter(self, x: Tensor, lengths: Tensor) -> Tensor:
        found = self.positions(x)
        return found[0] if isinstance(found, tuple) else found

    def finish(self, h: Tensor) -> Tensor:
        # Post-norm Conformers and Transformers have no final norm.
        has_norm = getattr(self.encoder, "normalize_before", True)
        return self.encoder.after_norm(h) if has_norm else h

    def drop_mimicked(self, entrance: bool) -> None:
        if entrance:
            self._keep([])
        if hasattr(self.encoder, "after_norm"):
            self.encoder.after_norm = nn.Identity()

    def _context(self, h: Tensor, lengths: Tensor) -> tuple[Tensor | None, Tensor]:
        found = self.positions(h)
        mask = frame_mask(lengths, h.shape[1], h.device).unsqueeze(1)
        return (found[1] if isinstance(found, tuple) else None), mask

    def _step(self, layer: nn.Module, h: Tensor, context: Any) -> Tensor:
        positions, mask = context
        found = layer(h if positions is None else (h, positions), mask)[0]
        return found[0] if isinstance(found, tuple) else found

    def _keep(self, places: Sequence[int]) -> None:
        # Only the constructor of ESPnet's encoder makes a container of layers.
        layers = copy.copy(self.encoder.encoders)
        kept = [self.encoder.encoders[place] for place in places]
        layers._modules = {str(place): layer for place, layer in enumerate(kept)}
        self.encoder.encoders = layers
        arguments = dict(self.source["arguments"])
        conf = dict(arguments.get("encoder_conf") or {})
        conf["num_blocks"] = len(places)
        if conf.pop("interctc_layer_idx", None):  # a training loss; its layers are renumbered
            arguments["model_conf"] = {
                **(arguments.get("model_conf") or {}),
                "interctc_weight": 0.0,
            }
        for key in _BY_LAYER:
            if isinstance(conf.get(key), list):
                conf[key] = [conf[key][place] for place in places]
        self.source = {**self.source, "arguments": {**arguments, "encoder_conf": conf}}

    def save(self, folder: str | Path) -> None:
        """Write config.yaml, model.pth and feats_stats.npz for stock ESPnet.

        The other parts of the model (CTC, decoder, head) are those that were loaded.
        """
        folder = Path(folder)
        arguments = copy.deepcopy(self.source["arguments"])
        state = dict(self.source["state"])
        state |= {f"encoder.{k}": v.detach().clone() for k, v in self.encoder.state_dict().items()}
        with atomic_path(folder) as temporary:
            temporary.mkdir(parents=True)
            torch.save(state, temporary / "model.pth")
            arguments = gather(arguments, temporary)
            text = yaml.safe_dump(arguments, sort_keys=False, allow_unicode=True)
            (temporary / "config.yaml").write_text(text, encoding="utf-8")
            write_json(temporary / _FEATURES, self.source["features"])


def load_espnet(path: Path) -> ESPnetStack:
    """Load ``exp/<tag>`` (its deployed model) or a folder that stage 5 or ``save`` wrote.

    Raises:
        UserError: see ``load.load_stack``.
    """
    folder = deployed_folder(path, "model.pth")
    if folder is None or not (folder / "config.yaml").is_file():
        raise UserError(f"no plain model in {path}; run stage 5 with --variant merged")
    config = folder / "config.yaml"
    arguments = read_config(config)
    with building({}, config):
        encoder_class = _encoder_class(folder, arguments)
    statistics = folder / STATISTICS
    refuse_changed(statistics)
    state = load_state(folder / "model.pth")
    with building(state, config):
        features = _features(folder, arguments)
        frontend = _frontend(folder, features)
        normalize = _normalize(arguments, statistics)
        conf = arguments.get("encoder_conf") or {}
        encoder = encoder_class(input_size=frontend.output_size(), **conf)
    prefix = "encoder."
    weights = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    compare_state(encoder, weights, folder / "model.pth")
    refuse_changed(folder / "model.pth")
    encoder.load_state_dict(weights)
    source = {
        "arguments": arguments,
        "state": {k: v for k, v in state.items() if not k.startswith(prefix)},
        "features": features,
    }
    return ESPnetStack(encoder, frontend, normalize, source).eval()


def _encoder_class(folder: Path, arguments: dict[str, Any]) -> Any:
    """Return the class of the encoder of a config.yaml."""
    name = arguments.get("encoder")
    if name not in _ENCODERS:
        raise UserError(
            f"{folder}: no stack of equal layers in encoder {nearest(str(name), _ENCODERS)}"
        )
    if (arguments.get("encoder_conf") or {}).get("interctc_use_conditioning"):
        raise UserError(f"{folder}: layers conditioned on CTC cannot be run one by one")
    module = importlib.import_module(f"espnet2.asr.encoder.{name}_encoder")
    return getattr(module, _ENCODERS[name])


def _features(folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the frontend and its options."""
    # ESPnet builds no frontend, whatever its name, if the width of the features is given.
    if arguments.get("frontend") is not None and arguments.get("input_size") is None:
        return {"frontend": arguments["frontend"], **(arguments.get("frontend_conf") or {})}
    if (folder / _FEATURES).is_file():
        return read_json(folder / _FEATURES)
    known = (arguments.get("espnet_ext") or {}).get("input") or {}
    deltas = known.get("deltas", 0)
    bins = arguments["input_size"] // (1 + deltas)
    options = {"fs": known.get("rate", RATE), "n_mels": bins, "deltas": deltas}
    if known.get("definition", KALDI) != KALDI:
        options["definition"] = known["definition"]
    return {"frontend": "kaldi_fbank", **options}


def _frontend(folder: Path, features: dict[str, Any]) -> Any:
    import humanfriendly
    from espnet2.asr.frontend.default import DefaultFrontend

    conf = {key: value for key, value in features.items() if key != "frontend"}
    rate = conf.get("fs", RATE)
    if (humanfriendly.parse_size(rate) if isinstance(rate, str) else rate) != RATE:
        raise UserError(f"{folder}: a stack needs speech of {RATE} Hz, this model {rate}")
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
    """Return an input layer without its positions, and the positions; tensors are shared."""
    if isinstance(embed, nn.Sequential):
        return copy_sharing_tensors(embed[:-1]), embed[-1]
    if not hasattr(embed, "pos_enc"):
        raise UserError(f"no positions in the input layer {type(embed).__name__}")
    without = copy_sharing_tensors(embed)
    without.pos_enc = nn.Identity()
    return without, embed.pos_enc
