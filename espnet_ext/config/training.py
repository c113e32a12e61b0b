"""Training configs: ESPnet's options in YAML, and one section of ours.

``recipe:`` is the only key that ESPnet does not know; it holds what the other stages need.
Reading a config imports neither torch nor ESPnet.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as checked

from espnet_ext.config.decoding import CTC_GREEDY
from espnet_ext.config.includes import merge, put, resolve_includes
from espnet_ext.errors import UserError, check_name
from espnet_ext.validation import STRICT, parsed
from espnet_ext.yaml_files import parse_yaml

# Frontends whose features stage 2 can write into arks.
ARK_FRONTENDS = ("kaldi_fbank", "ssl")
# Keys of ``recipe:`` that only stages 5 to 8 read: they may change after a training.
READ_LATER = (
    "variant",
    "variants",
    "untrained",
    "decode",
    "baseline",
    "vote",
    "checkpoint_minutes",
)
UNTRAINED = "untrained"  # variant: the pretrained model as it is
EXPERIMENTS = Path("exp")  # of a recipe, in its folder

Name = Annotated[str, Field(min_length=1, description="a name")]
Section = dict[str, Any]
Speed = Annotated[float, Field(ge=0.5, le=2, description="a speed from 0.5 to 2")]


def _at_least(least: int) -> Any:
    return Field(ge=least, description=f"a whole number of at least {least}")


def _tokens(least: int) -> Any:
    most = 1_000_000  # more than any language needs, and little memory
    return Field(ge=least, le=most, description=f"a whole number from {least} to {most:,}")


@checked(frozen=True, config=STRICT)
class MimicTraining:
    """``recipe: mimic:``, how mimics learn the layers that they replace, before the task.

    Adam at ``lr``, ``batch_size`` utterances a step; the weights of the least validation error
    are kept. Activations of the teacher are cached on disk if all of them fit into ``cache_gb``.
    """

    epochs: Annotated[int, _at_least(1)] = 40
    lr: Annotated[float, Field(gt=0, description="a number above 0")] = 1e-3
    batch_size: Annotated[int, _at_least(1)] = 16
    cache_gb: Annotated[float, Field(ge=0, description="a number of at least 0")] = 4.0


@checked(frozen=True, config=STRICT)
class Recipe:
    """The ``recipe:`` section: options of the stages other than training."""

    task: Literal["asr", "st", "cls"] = "asr"  # st: speech translation; cls: classification
    target: Any = None  # of task st: language of the translations, as in text.en
    train_set: Name = "train"  # data set that is learnt from
    # copies of the training set at other speeds, which are learnt from too (data.speed_perturb)
    speeds: Annotated[list[Speed], Field(description="a list of speeds, as in [0.9, 1.1]")] = field(
        default_factory=list
    )
    # lists that the training set is read in, one after the other, to hold fewer in memory
    splits: Annotated[int, Field(ge=1, le=100, description="a whole number from 1 to 100")] = 1
    dev_set: Name = "dev"  # data set that checkpoints are chosen by
    features: Literal["raw", "ark"] = "raw"  # raw: by the frontend; ark: written by stage 2
    vocabulary: Annotated[int, _tokens(5)] = 200  # SentencePiece pieces; unused with char
    # of token_type hugging_face: merges of its BPE that texts are written with; null: all
    merges: Annotated[int | None, _tokens(1)] = None
    classes: Annotated[int, _tokens(2)] = 2  # of task cls: how many
    labels: Name = "label"  # of task cls: which list of classes, where a recipe has several
    sentencepiece: Literal["unigram", "bpe"] = "unigram"  # unused with token_type char
    average: Annotated[int, _at_least(1)] = 5  # checkpoints averaged
    average_by: Name = "valid.loss"  # criterion, as ESPnet names it
    variant: Name = "merged"  # of the deployed model, where none is named and variants is null
    # all variants that stages 5 to 8 make, each with what it is compared with: another one, or
    # TAG/VARIANT of another run, or a list of these (null: baseline)
    variants: dict[Name, Name | list[Name] | None] | None = None
    huffman: bool = False  # packed files hold their integers by Huffman codes: fewer bytes
    # encoder_conf of the variant untrained, the pretrained model as it is: keys that differ
    untrained: Section | None = None
    decode: Any = field(default_factory=lambda: {CTC_GREEDY: {}})  # methods with options
    # sources of the pretrained model that stage 2 puts at encoder_conf: path, or frontend_conf:
    # folder; one, or several in order (data.fetch.sources)
    fetch: str | list[str] | None = None
    # pretrained encoder whose outputs the encoder learns too: exp/<tag>, or a folder of a model
    teacher: Annotated[str | None, Field(description="exp/<tag>, or a folder of a model")] = None
    # of the loss by frame that compares the two encoders
    teacher_weight: Annotated[float, Field(ge=0, description="a number of at least 0")] = 1.0
    mimic: Section | None = None  # step one of a mimic; None: it starts at random
    # run that stage 7 compares with
    baseline: Annotated[str | None, Field(description="the tag of a run")] = None
    vote: bool = False  # task cls: one decision a speaker, by majority over the utterances
    cpu_dtype: Literal["float32", "bfloat16"] = "float32"  # of forward passes on a CPU
    # several GPUs have the batch statistics of all of them; false: each those of its batch
    sync_batchnorm: bool = True
    # between checkpoints within an epoch; 0: after epochs only
    checkpoint_minutes: Annotated[
        float, Field(ge=0, description="a number of at least 0, of minutes")
    ] = 15.0

    @property
    def target_file(self) -> str:
        """File of a data directory that holds what is learnt and scored."""
        if self.task == "cls":
            return "label"
        return f"text.{self.target}" if self.task == "st" else "text"

    @property
    def averaged_file(self) -> str:
        """The name that ESPnet gives the average of the best checkpoints."""
        return f"{self.average_by}.ave.pth"

    @property
    def sources(self) -> list[str]:
        """Those under ``fetch:``."""
        return as_list(self.fetch)

    def compared_with(self, tag: str, variant: str) -> list[str]:
        """The names, TAG or TAG/VARIANT, that a variant of the run ``tag`` is compared with."""
        others = (self.variants or {}).get(variant)
        if others is None:
            return as_list(self.baseline)
        return [other if "/" in other else f"{tag}/{other}" for other in as_list(others)]

    @property
    def mimic_training(self) -> MimicTraining | None:
        """The options under ``mimic:``, checked."""
        return None if self.mimic is None else MimicTraining(**self.mimic)

    @classmethod
    def parse(cls, section: Section) -> tuple["Recipe", list[str]]:
        """Read a ``recipe:`` section.

        Returns:
            The section, with defaults in the place of values that do not fit, and one line for
            each of these.
        """
        recipe, wrong = parsed(cls, section, "recipe: ")
        _, more = parsed(MimicTraining, recipe.mimic or {}, "recipe: mimic: ")
        return recipe, wrong + more


_DEFAULTS = Recipe()


@dataclass(frozen=True)
class Config:
    """A training config, its includes resolved."""

    path: Path
    tag: str
    recipe: Recipe
    espnet: dict[str, Any]  # options of ESPnet's trainer

    @property
    def token_type(self) -> str:
        """ESPnet's ``token_type``."""
        return self.espnet.get("token_type", "bpe")

    @property
    def has_layer_features(self) -> bool:
        """Whether features are those of a pretrained model's layers (``frontend: ssl``)."""
        return self.espnet.get("frontend") == "ssl"

    def conf(self, part: str) -> dict[str, Any]:
        """The section of a part, as ``encoder_conf`` of ``encoder``."""
        return self.espnet.get(f"{part}_conf") or {}

    def as_dict(self) -> dict[str, Any]:
        """The whole config as plain containers, for records."""
        section = {f.name: getattr(self.recipe, f.name) for f in fields(Recipe)}
        return {"recipe": copy.deepcopy(section), **copy.deepcopy(self.espnet)}


def as_list(names: str | list[str] | None) -> list[str]:
    """Names that a config gives as one, as several, or not at all."""
    return [names] if isinstance(names, str) else list(names or ())


def load_config(path: str | Path, tag: str | None = None) -> Config:
    """Read a training config.

    Args:
        path: of the config.
        tag: name of the experiment; default: from the file's name, without train_.

    Raises:
        UserError: what ``read_config`` raises, an unknown key or a wrong value in ``recipe:``,
            or a single value where a section belongs.
    """
    config, wrong = read_config(path, tag)
    for problem in wrong:
        raise UserError(f"{config.path}: {problem}")
    return config


def read_config(path: str | Path, tag: str | None = None) -> tuple[Config, list[str]]:
    """Read a training config that may have mistakes.

    Returns:
        The config, and one line for each wrong section or value in ``recipe:``.

    Raises:
        UserError: what ``resolve_includes`` raises, or a grid.
    """
    path = Path(path)
    espnet = resolve_includes(path)
    if "systems" in espnet:
        raise UserError(f"{path}: a grid; run espnet-ext grid {path}")
    wrong = _single_values(espnet)
    section = espnet.pop("recipe", None)
    recipe, more = Recipe.parse(section if isinstance(section, dict) else {})
    tag = check_name(path.stem.removeprefix("train_") if tag is None else tag, "the tag")
    for key in ("train_set", "dev_set", "baseline", "variant", "labels", "target"):
        if isinstance(name := getattr(recipe, key), str):
            check_name(name, f"{path}: recipe: {key}:")
    for variant in recipe.variants or {}:
        check_name(variant, f"{path}: recipe: variants:")
    return Config(path, tag, recipe, espnet), wrong + more


def readable_config(path: Path) -> tuple[Config | None, list[str]]:
    """``read_config``, where a file that cannot be read is a problem too, without its path."""
    try:
        return read_config(path)
    except UserError as error:
        said = str(error).removeprefix(f"{path.resolve()}: ").removeprefix(f"{path}: ")
        return None, [said]


def is_config(path: str | Path) -> bool:
    """Whether a path names a config, by its suffix, and not the folder of a model."""
    return Path(path).suffix in (".yaml", ".yml")


def _single_values(merged: dict[str, Any]) -> list[str]:
    """A line for each section that is a single value."""
    return [
        f"{key}: expected keys and values, not {value!r}"
        for key, value in merged.items()
        if (key == "recipe" or key.endswith("_conf")) and not isinstance(value, dict | None)
    ]


def changed(config: Config, settings: Sequence[str]) -> Config:
    """Return the config with ESPnet's options set anew.

    Args:
        config: any.
        settings: ``KEY=VALUE`` each, a dotted key and a value in YAML.

    Raises:
        UserError: one has no ``=``, its value is not YAML or a single one where a section belongs,
            or its key is one of ``recipe:``.
    """
    espnet = config.espnet
    for setting in settings:
        changes: dict[str, Any] = {}
        key, equals, value = setting.partition("=")
        if not equals or key.partition(".")[0] in ("", "recipe", "include", "exclude"):
            raise UserError(f"'{setting}': expected KEY=VALUE, a key outside of recipe:")
        put(changes, key, parse_yaml(value, f"'{setting}'"))
        espnet = merge(espnet, changes)
    for problem in _single_values(espnet):
        raise UserError(f"{config.path}: {problem}")
    return replace(config, espnet=espnet)


def given_settings(config: dict[str, Any]) -> dict[str, Any]:
    """A config (``Config.as_dict``) without the keys of ``recipe:`` that are at their default.

    So compared, a record from before a key was added equals one that has its default.
    """
    default = {f.name: getattr(_DEFAULTS, f.name) for f in fields(Recipe)}
    recipe = {
        key: value
        for key, value in config["recipe"].items()
        if key not in default or value != default[key]
    }
    return {**config, "recipe": recipe}


def training_settings(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that decides a training, without defaults (``given_settings``).

    Keys that only later stages read are left out too: they may change afterwards.
    """
    given = given_settings(config)
    recipe = {key: value for key, value in given["recipe"].items() if key not in READ_LATER}
    return {**given, "recipe": recipe}
