"""Wrong combinations of settings in a training config, found without building its model."""

from collections.abc import Iterator, Mapping
from typing import Any

from espnet_ext.config.decoding import (
    ATTENTION_BEAM,
    ATTENTION_GREEDY,
    ATTENTION_STREAM,
    CLASSIFY,
    CTC_BEAM,
    CTC_GREEDY,
    DECODE,
    TRANSDUCER,
)
from espnet_ext.config.pretrained import PRETRAINED, fetched_folder, token_source
from espnet_ext.config.training import ARK_FRONTENDS, Config, Recipe, as_list
from espnet_ext.errors import UserError, nearest
from espnet_ext.languages import script_of
from espnet_ext.validation import parsed

TOKENS = f"char, bpe or {PRETRAINED}"
_ATTENTION = (ATTENTION_GREEDY, ATTENTION_BEAM, ATTENTION_STREAM)
_TEXTS = (CTC_GREEDY, CTC_BEAM, *_ATTENTION, *TRANSDUCER)
_METHODS = {"asr": _TEXTS, "st": _TEXTS, "cls": (CLASSIFY,)}
# Models in packages of the Python index; ``data.fetch.whisper`` gets them.
PACKAGED = ("whisper_tiny.en", "whisper_base")
UNSET = (None, "none", "null", "nil")  # values by which ESPnet leaves a part out


def recipe_problems(config: Config) -> list[str]:
    """Return a line for each wrong combination of settings.

    Single values of ``recipe:`` are checked when the config is read.
    """
    espnet, recipe = config.espnet, config.recipe
    return [
        *_sample_problems(espnet),
        *_target_problems(recipe),
        *_token_problems(config),
        *_ark_problems(config),
        *_recurrent_problems(espnet),
        *_average_problems(config),
        *_variant_problems(config),
        *_head_problems(espnet),
        *_stack_problems(config),
        *_teacher_problems(config),
        *_nested_problems(config),
        *_decode_problems(recipe, espnet),
    ]


def _token_problems(config: Config) -> Iterator[str]:
    """Stage 3 makes two kinds of tokens, or copies those of a pretrained model."""
    kind = config.token_type
    if config.recipe.task == "cls":
        return
    if kind not in ("char", "bpe", PRETRAINED):
        yield f"token_type: the recipes make {TOKENS} tokens, not {kind!r}"
    elif kind == PRETRAINED and token_source(config.espnet) is None:
        yield f"token_type: {PRETRAINED} needs a pretrained model: give decoder_conf: path"
    elif config.espnet.get("decoder") == "whisper" and kind != PRETRAINED:
        yield f"decoder: whisper needs the tokens of its model: token_type: {PRETRAINED}"
    if config.recipe.merges is not None and kind != PRETRAINED:
        yield f"recipe: merges is for token_type: {PRETRAINED}; bpe has recipe: vocabulary"


def _target_problems(recipe: Recipe) -> Iterator[str]:
    """Translation needs a language to translate into, and nothing else does."""
    if recipe.task != "st":
        if recipe.target is not None:
            yield f"recipe: target: {recipe.target} is for task st, not for task {recipe.task}"
    elif recipe.target is None:
        yield "recipe: task: st needs the language to translate into, as in target: en"
    elif not isinstance(recipe.target, str):
        hint = "; YAML reads no as false, so quote it" if recipe.target is False else ""
        yield f"recipe: target must be a language, as in en or zh-CN, not {recipe.target!r}{hint}"
    else:
        try:
            script_of(recipe.target)
        except UserError as error:
            yield f"recipe: target: {error}"


def _ark_problems(config: Config) -> Iterator[str]:
    """Arks are written by some frontends only, and one of them writes nothing else."""
    frontend, ark = config.espnet.get("frontend"), config.recipe.features == "ark"
    if ark and frontend not in ARK_FRONTENDS:
        yield f"recipe: features: ark needs frontend: {' or '.join(ARK_FRONTENDS)}"
    if not ark and frontend == "ssl":
        yield "frontend: ssl needs recipe: features: ark; stage 2 writes its features"


def _variant_problems(config: Config) -> Iterator[str]:
    """A variant is compared with others of the run, or of another one (TAG/VARIANT)."""
    variants = config.recipe.variants or {}
    for variant, compared in variants.items():
        others = [name for name in variants if name != variant]
        words = f"recipe: variants: {variant} is compared with"
        if compared == []:
            yield f"{words} nothing; null is the baseline"
        for other in as_list(compared):
            tag, is_run, name = other.rpartition("/")
            if not is_run and other not in others:
                yield f"{words} {nearest(other, others)}"
            elif is_run and not (tag and name):
                yield f"{words} {other!r}, which is no TAG/VARIANT"
            elif other == f"{config.tag}/{variant}":
                yield f"{words} itself"


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
        if not isinstance(conf.get("mimic"), dict):
            yield "recipe: mimic is step one of encoder_conf: mimic, which is not there"
        if conf.get("path") is None:
            yield "recipe: mimic: step one imitates a model: give encoder_conf: path"
    if config.recipe.fetch is not None:
        for source in config.recipe.sources:
            if "/" not in source and source not in PACKAGED:
                yield f"recipe: fetch: unknown model {nearest(source, PACKAGED)}"
        if fetched_folder(config.espnet) is None:
            yield "recipe: fetch: give encoder_conf: path, the folder that the model is written to"


def _teacher_problems(config: Config) -> Iterator[str]:
    """A teacher hears samples, and teaches a recogniser."""
    recipe = config.recipe
    if recipe.teacher is None:
        return
    if recipe.task == "cls":
        yield "recipe: teacher is for task asr or st"
    if recipe.features == "ark":
        yield "recipe: teacher hears samples: choose features: raw"
    if _is_family(config):
        yield "recipe: teacher is not for a nested family, whose largest network teaches the others"


def _nested_problems(config: Config) -> Iterator[str]:
    """The loss of a family is that of a recogniser."""
    if _is_family(config) and config.recipe.task == "cls":
        encoder = str(config.espnet.get("encoder", "")).lower()
        yield f"encoder: {encoder}: a nested family is for task asr or st, whose loss trains it all"


def _is_family(config: Config) -> bool:
    encoder = str(config.espnet.get("encoder", "")).lower()
    nested = section(config.espnet, "encoder_conf").get("nested")
    return encoder.startswith("nested_") or nested is not None


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
        chosen, wrong = parsed(DECODE[method], options or {}, f"{where}: ")
        yield from wrong
        transducer = espnet.get("decoder") == "transducer"
        if method in TRANSDUCER and not transducer:
            yield f"{where} needs decoder: transducer"
            continue
        if method == CTC_BEAM and transducer:
            yield f"{where} is not for decoder: transducer; use transducer_beam"
            continue
        if method in _ATTENTION and espnet.get("decoder") != "whisper":
            yield f"{where} needs decoder: whisper"
            continue
        needs_ctc = method == CTC_GREEDY or (method == CTC_BEAM and chosen.ctc_weight != 0)
        if needs_ctc and ctc_weight(espnet) == 0:
            yield f"{where} needs CTC, but model_conf: ctc_weight is 0"


def _sample_problems(espnet: Mapping[str, Any]) -> Iterator[str]:
    """Samples must reach a stack as they are; ESPnet normalises whatever a frontend gives."""
    if espnet.get("encoder") == "stack" and espnet.get("frontend") != "raw":
        yield f"encoder: stack reads samples: needs frontend: raw, not {espnet.get('frontend')}"
    elif espnet.get("frontend") == "raw" and espnet.get("normalize", "") not in UNSET:
        # Its default, utterance_mvn, also needs memory by the square of the samples.
        yield "frontend: raw needs normalize: null"


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
