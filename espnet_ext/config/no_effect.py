"""Settings of a training config that do nothing, or not what one expects."""

from collections.abc import Iterator, Mapping
from typing import Any

from espnet_ext.config.decoding import CTC_BEAM
from espnet_ext.config.pretrained import PRETRAINED
from espnet_ext.config.recipe_errors import UNSET, ctc_weight, section
from espnet_ext.config.reserved_options import SET_BY_TRAIN
from espnet_ext.config.training import Config, Recipe


def no_effect_warnings(config: Config, method: str | None = None) -> list[str]:
    """Settings that do nothing, or not what one expects, one line each.

    ``method`` is the compression method of the encoder, if it has one.
    """
    espnet = config.espnet
    found = [
        f"{key} has no effect: training gets it from {source}"
        for key, source in SET_BY_TRAIN.items()
        if key in espnet
    ]
    for key, conf in espnet.items():
        owner = key.removesuffix("_conf")
        if key.endswith("_conf") and conf and owner in espnet and espnet[owner] in UNSET:
            found.append(f"{key} has no effect: {owner} is {espnet[owner]}")
    for key in ("specaug", "scheduler", "preencoder", "postencoder"):
        if section(espnet, f"{key}_conf") and key not in espnet:
            found.append(f"{key}_conf has no effect: no {key} is chosen")
    if method is not None and espnet.get("init") not in UNSET:
        found.append(
            f"init: {espnet['init']} overwrites the initialisation of {method}'s factors; remove it"
        )
    if config.recipe.task != "cls":
        found += _loss_warnings(espnet)
    return found + [
        *_step_warnings(config),
        *_start_warnings(espnet),
        *_input_warnings(config),
        *_batch_warnings(espnet),
    ]


def _step_warnings(config: Config) -> Iterator[str]:
    nested = section(section(config.espnet, "encoder_conf"), "nested")
    deviation = nested.get("scale") == "deviation"
    if "step" in nested and not deviation:
        yield "encoder_conf: nested: step has no effect without scale: deviation"
    coarse = {"scale: deviation": deviation, "table_step": "table_step" in nested}
    for key, is_used in coarse.items():
        if is_used and not config.recipe.huffman:
            yield f"encoder_conf: nested: {key} saves bytes only with recipe: {{huffman: true}}"


def _start_warnings(espnet: Mapping[str, Any]) -> Iterator[str]:
    for part in ("encoder_conf", "decoder_conf"):
        conf = section(espnet, part)
        trained = conf.get("path") or espnet.get("init_param")
        if "start" in section(conf, "residual") and not trained:
            yield f"{part}: residual: start has no effect: no trained layers are given"


def _loss_warnings(espnet: Mapping[str, Any]) -> Iterator[str]:
    model, encoder = section(espnet, "model_conf"), section(espnet, "encoder_conf")
    weight = model.get("interctc_weight", 0.0)
    if weight and not encoder.get("interctc_layer_idx"):
        yield "model_conf: interctc_weight has no effect without encoder_conf: interctc_layer_idx"
    conditioned = encoder.get("interctc_use_conditioning", False)
    if encoder.get("interctc_layer_idx") and not weight and not conditioned:
        yield "encoder_conf: interctc_layer_idx has no effect: model_conf: interctc_weight is 0"
    if ctc_weight(espnet) == 1 and espnet.get("decoder") != "transducer":
        if espnet.get("decoder") not in UNSET:
            yield "decoder has no effect: ESPnet builds none at model_conf: ctc_weight 1.0"
        for key in ("lsm_weight", "length_normalized_loss"):
            if model.get(key):
                yield f"model_conf: {key} has no effect at ctc_weight 1.0"
    if ctc_weight(espnet) == 0 and section(espnet, "ctc_conf"):
        yield "ctc_conf has no effect: model_conf: ctc_weight is 0"


def _input_warnings(config: Config) -> Iterator[str]:
    espnet = config.espnet
    specaug = section(espnet, "specaug_conf")
    for kind in ("time_warp", "freq_mask", "time_mask"):
        if specaug.get(f"apply_{kind}", True) is False:
            for key in specaug:
                if key != f"apply_{kind}" and key.removeprefix("num_").startswith(kind):
                    yield f"specaug_conf: {key} has no effect: apply_{kind} is false"
    if "stats_file" in section(espnet, "normalize_conf"):
        yield "normalize_conf: stats_file has no effect: training gets it from the statistics"
    if config.recipe.features == "ark":
        for key in ("speech_volume_normalize", "rir_scp", "noise_scp"):
            if espnet.get(key) not in UNSET:
                yield f"{key} is for audio, but recipe: features is ark"
    default = Recipe()
    if (kind := espnet.get("token_type", "bpe")) in ("char", PRETRAINED):
        for key in ("vocabulary", "sentencepiece"):
            if getattr(config.recipe, key) != getattr(default, key):
                yield f"recipe: {key} has no effect: token_type is {kind}"
    has_decoder = ctc_weight(espnet) != 1 and espnet.get("decoder") not in UNSET
    beam = config.recipe.decode.get(CTC_BEAM) if isinstance(config.recipe.decode, dict) else {}
    if isinstance(beam, dict) and beam.get("ctc_weight", 1) != 1 and not has_decoder:
        yield "recipe: decode: ctc_att_beam: ctc_weight has no effect: the model has no decoder"


def _batch_warnings(espnet: Mapping[str, Any]) -> Iterator[str]:
    kind = espnet.get("batch_type", "folded")
    if kind in ("length", "numel") and "batch_size" in espnet:
        yield f"batch_size has no effect: batch_type is {kind}; write batch_bins"
    if kind in ("unsorted", "sorted", "folded") and "batch_bins" in espnet:
        yield f"batch_bins has no effect: batch_type is {kind}; write batch_size"
    if kind != "folded" and "fold_length" in espnet:
        yield f"fold_length has no effect: batch_type is {kind}"
    if espnet.get("iterator_type", "sequence") != "chunk":
        for key in espnet:
            if key.startswith("chunk_") or key == "num_cache_chunks":
                yield f"{key} has no effect: iterator_type is not chunk"
    if espnet.get("use_adapter", False) is False and "adapter" in espnet:
        yield "adapter has no effect: use_adapter is false"
