"""Loads or builds a stack of any family."""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from espnet_ext.config.pretrained import deployed_folder
from espnet_ext.data.tokenizer import HUB
from espnet_ext.encoders.pretrained.espnet import load_espnet
from espnet_ext.encoders.pretrained.stack import Stack
from espnet_ext.encoders.pretrained.transformers_stack import LOAD_ERRORS, first_line, quiet
from espnet_ext.encoders.pretrained.wav2vec2 import Wav2Vec2Stack
from espnet_ext.encoders.pretrained.whisper import ENCODER, WhisperStack
from espnet_ext.errors import UserError, nearest
from espnet_ext.formats.building import SMALL_MODEL, bounded, from_own_file
from espnet_ext.formats.digests import refuse_changed
from espnet_ext.run_files import deployed_holding

# Model types of transformers.
FAMILIES: dict[str, type[Wav2Vec2Stack | WhisperStack]] = {
    "hubert": Wav2Vec2Stack,
    "wav2vec2": Wav2Vec2Stack,
    "wavlm": Wav2Vec2Stack,
    "whisper": WhisperStack,
    ENCODER: WhisperStack,
}


@from_own_file()
def load_stack(path: str | Path) -> Stack:
    """Load a model as a stack, in evaluation mode and float32.

    Args:
        path: a folder in transformers' format (config.json, model.safetensors; model types
            wav2vec2, hubert, wavlm, whisper); or an experiment of our recipes, ``exp/<tag>`` or
            its ``deploy/<variant>``; or ``hub:NAME``, a model that transformers' loader finds in
            its cache or fetches. Only tensors are read, never code.

    Raises:
        UserError: no such folder, unknown family, or weights that are damaged, missing, or of
            other shapes than the config says.
    """
    name, folder = str(path), Path(path)
    if name.startswith(HUB):
        model = name.removeprefix(HUB)
        return _read(model, _family_in_hub(model, name), name, local=False)
    deployed = deployed_folder(folder, "stack")
    if deployed is not None:
        return load_stack(deployed / "stack")
    config = folder / "config.json"
    if config.is_file():
        return _read(name, _family_of(config), config, local=True)
    if deployed_holding(folder, "config.yaml") or (folder / "config.yaml").is_file():
        return load_espnet(folder)
    if not folder.is_dir():
        raise UserError(f"no model folder {path}; a model of transformers' hub is {HUB}NAME")
    raise UserError(
        f"{path} holds no model: neither config.json with model.safetensors (transformers) "
        "nor config.yaml with model.pth (ESPnet, written by stage 5)"
    )


def build_stack(architecture: Mapping[str, Any]) -> Stack:
    """Build a stack of random weights, in evaluation mode.

    Args:
        architecture: keys of transformers' config.json: ``model_type`` and whatever differs from
            the defaults of its config; and ``do_normalize`` of the feature extractor.

    Raises:
        UserError: unknown family or key, or values that describe no model.
    """
    conf = dict(architecture)
    family = str(conf.pop("model_type", None))
    if family not in FAMILIES:
        raise UserError(f"architecture: unknown model_type {nearest(family, FAMILIES)}")
    return FAMILIES[family].build(family, conf).eval()


def _read(name: str, family: Any, source: str | Path, local: bool) -> Stack:
    if family not in FAMILIES:
        raise UserError(f"{source}: unknown model family {nearest(str(family), FAMILIES)}")
    for path in Path(name).iterdir() if local else ():  # the stack of a deployed model
        refuse_changed(path)
    with quiet(), _no_larger_than_file(Path(name), source) if local else nullcontext():
        return FAMILIES[family].read(name, family, local).eval()


def _no_larger_than_file(folder: Path, source: str | Path) -> AbstractContextManager[None]:
    """Refuse a config.json that describes a far larger model than the weights next to it."""
    # transformers makes each tensor twice, and a number has a byte at least.
    held = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    reason = f"{source} describes a model that is many times as large as its weights"
    return bounded(2 * held + SMALL_MODEL, reason)


def _family_in_hub(model: str, source: str) -> Any:
    """The model type of a model of the hub."""
    import transformers

    try:
        with quiet():
            return transformers.PreTrainedConfig.get_config_dict(model)[0].get("model_type")
    except LOAD_ERRORS as error:
        raise UserError(f"{source}: {first_line(error)}") from None


def _family_of(config: Path) -> Any:
    """The model type in a config.json."""
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{config}: not valid JSON: {error}") from None
    return content.get("model_type") if isinstance(content, dict) else None


def without_missing_model(conf: Mapping[str, Any]) -> dict[str, Any]:
    """Return an ``encoder_conf`` without its ``path`` if the folder is missing.

    The encoder is then built from its ``architecture``, if it has one, with random weights: a
    config can be examined (check, footprint) before anything was fetched. A family whose ``common``
    tokens stage 3 has not listed yet is built without.
    """
    found, nested = dict(conf), conf.get("nested")
    path, architecture = conf.get("path"), conf.get("architecture")
    if path is not None and architecture is not None and not Path(path).exists():
        found["path"] = None
    if nested and nested.get("common") and not Path(nested["common"]).exists():
        rare = nested.get("rare") if nested.get("frequent") else None  # else all tokens are rare
        found["nested"] = {**nested, "common": None, "rare": rare}
    return found


def load_or_build(path: str | None, architecture: dict | None) -> Stack:
    """Load ``path``, whose sizes must be those of ``architecture``, or build the latter.

    Raises:
        UserError: neither is given, the sizes differ, or an error of ``load_stack``.
    """
    if path is None:
        if architecture is None:
            raise UserError("encoder: stack: give the path of a model, or an architecture to build")
        return build_stack(architecture)
    stack = load_stack(path)
    found = stack.architecture or {}
    for key, value in (architecture or {}).items():
        if found.get(key, value) != value:
            raise UserError(
                f"{path} has {key} {found[key]!r}, encoder_conf: architecture says {value!r}"
            )
    return stack
