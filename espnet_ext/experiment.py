"""A training config resolved in its recipe's folder: every path and number that stages read.

Stages, and the modules below them, take an ``Experiment`` and derive nothing from the raw config.
Paths start from the recipe's folder, the working folder of every stage. Importing this module, and
resolving an experiment, needs neither torch nor ESPnet.
"""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import humanfriendly

from espnet_ext.config.pretrained import (
    PRETRAINED,
    pretrained_files,
    require_token_source,
    start_files,
)
from espnet_ext.config.recipe_errors import TOKENS, recipe_problems
from espnet_ext.config.training import EXPERIMENTS, Config, Recipe, load_config
from espnet_ext.data.features import FRAMES_PER_SECOND, KALDI, Definition, ark_definition
from espnet_ext.data.kaldi_dir import audio_inputs, data_sets
from espnet_ext.data.segments import set_folder
from espnet_ext.data.speed_perturb import holds_copies, with_copies
from espnet_ext.errors import UserError, check_name, nearest
from espnet_ext.files import weights_file
from espnet_ext.languages import text_in

FAMILY = "family"  # variant that holds all members of a nested family in one file


@dataclass(frozen=True)
class Experiment:
    """A training config, the variant in question, and all that follows from them.

    Attributes:
        config: the config.
        variant: the one that is written, decoded, scored and reported.
        root: the recipe's folder.
    """

    config: Config
    variant: str
    root: Path = Path()

    @classmethod
    def load(cls, config: str | Path, tag: str | None = None, variant: str | None = None) -> Self:
        """Read a config and refuse what no stage understands.

        Args:
            config: path of the training config.
            tag: name of the experiment below exp/; default: from the config's name.
            variant: default: ``recipe: variant``.

        Raises:
            UserError: what ``load_config`` raises, or a wrong value in ``recipe:``.
        """
        loaded = load_config(config, tag)
        for problem in recipe_problems(loaded):
            raise UserError(f"{loaded.path}: {problem}")
        return cls.of(loaded, variant)

    @classmethod
    def of(cls, config: Config, variant: str | None = None, root: Path = Path()) -> Self:
        """The experiment of a config that was read; nothing more is checked."""
        chosen = check_name(variant or config.recipe.variant, "the variant")
        return cls(config, chosen, root)

    @property
    def recipe(self) -> Recipe:
        """The ``recipe:`` section."""
        return self.config.recipe

    @property
    def espnet(self) -> dict[str, Any]:
        """ESPnet's options."""
        return self.config.espnet

    # Folders and files of the experiment.

    @property
    def exp(self) -> Path:
        """Folder of all experiments of the recipe."""
        return self.root / EXPERIMENTS

    @property
    def folder(self) -> Path:
        """exp/<tag>."""
        return self.exp / self.config.tag

    @property
    def espnet_config(self) -> Path:
        """The config.yaml that ESPnet's trainer wrote: what builds the training model."""
        return self.folder / "config.yaml"

    @property
    def train_record(self) -> Path:
        """The run record that stage 4 writes (``bridge.run_record``)."""
        return self.folder / "train.json"

    @property
    def train_stamp(self) -> Path:
        """Stamp of the finished training."""
        return self.folder / ".train.done.json"

    @property
    def train_log(self) -> Path:
        """ESPnet's log."""
        return self.folder / "train.log"

    @property
    def averaged_link(self) -> Path:
        """The name under which ESPnet keeps the average of the best checkpoints."""
        return self.folder / self.recipe.averaged_file

    @property
    def averaged_model(self) -> Path:
        """The average of the ``recipe: average`` best checkpoints.

        Of a training with fewer epochs ESPnet uses the best checkpoint alone.

        Raises:
            UserError: stage 4 has not finished.
        """
        link = self.averaged_link
        if not link.exists():
            raise UserError(f"no {link}; run stage 4")
        # ESPnet's link names it; exp/ itself may be a link, to another disk.
        return self.folder / os.readlink(link) if link.is_symlink() else link

    @property
    def deployed(self) -> Path:
        """Folder of the deployed model."""
        return self.folder / "deploy" / self.variant

    @property
    def deploy_stamp(self) -> Path:
        """Stamp of the deployed model; not in its folder, which is replaced as a whole."""
        return self.deployed.with_name(f".{self.variant}.done.json")

    @property
    def weights(self) -> Path:
        """The weights of the deployed model; the file need not exist."""
        return weights_file(self.deployed)

    def require_deployed(self) -> Path:
        """Return ``deployed``.

        Raises:
            UserError: stage 5 has not written it.
        """
        if self.weights.is_file():
            return self.deployed
        raise UserError(f"no {self.deployed}/model.pth; run stage 5")

    @property
    def decode_folder(self) -> Path:
        """Folder of what stage 6 writes for this variant."""
        return self.folder / "decode" / self.variant

    def decoded(self, method: str, name: str) -> Path:
        """Folder of one set's hypotheses, by one decoding method."""
        return self.decode_folder / method / check_name(name, "the set")

    def decoded_variants(self, tag: str, method: str, name: str) -> dict[str, Path]:
        """The hypotheses of a set that any run of the recipe has, by the run's variant."""
        folder = self.exp / tag / "decode"
        found = sorted(folder.glob(f"*/{method}/{name}/text"))
        return {path.relative_to(folder).parts[0]: path for path in found}

    @property
    def score_folder(self) -> Path:
        """Folder of what stage 7 writes for this variant."""
        return self.folder / "score" / self.variant

    # Data, features and tokens.

    @property
    def data(self) -> Path:
        """Folder of the data directories."""
        return self.root / "data"

    @property
    def sets(self) -> tuple[str, str]:
        """Names of the training set, with its copies if there are some, and of the dev set."""
        train = self.recipe.train_set
        return (with_copies(train) if self.recipe.speeds else train), self.recipe.dev_set

    def references(self, name: str) -> Path:
        """The targets of a set: transcripts, translations or classes."""
        folder, recipe = self.data / name, self.recipe
        return (
            text_in(folder, recipe.target) if recipe.task == "st" else folder / recipe.target_file
        )

    def require_references(self, name: str) -> Path:
        """Return ``references(name)``.

        Raises:
            UserError: there are none; of a translation it says which languages there are.
        """
        path = self.references(name)
        if not path.is_file():
            known = [p.suffix[1:] for p in path.parent.glob("text.*") if p.is_file()]
            if self.recipe.target and known:
                wrong = f"recipe: target: {nearest(self.recipe.target, known)}"
                raise UserError(f"no {path}: {wrong} (stage 1 makes the languages)")
            raise UserError(f"no {path}; run stage {2 if holds_copies(name) else 1}")
        return path

    @cached_property
    def features(self) -> Definition | None:
        """The features that stage 2 writes into arks; None if the frontend computes them.

        Raises:
            UserError: the frontend writes none, a value is wrong, or its model is not there.
        """
        return ark_definition(self.config) if self.recipe.features == "ark" else None

    def ark_folder(self, name: str) -> Path:
        """Folder of the arks of a set; it raises what ``features`` does."""
        return self.root / "dump" / ark_definition(self.config).name / name

    def audio_list(self, name: str) -> Path:
        """The list of waves, or of feature matrices, of a set."""
        if self.recipe.features == "ark":
            return self.ark_folder(name) / "feats.scp"
        return set_folder(self.data, name) / "wav.scp"

    def require_audio_list(self, name: str) -> Path:
        """Return ``audio_list(name)``.

        Raises:
            UserError: there is no such set, or stage 2 has not run.
        """
        known = data_sets(self.data)
        if not known:
            raise UserError("no data directory with wav.scp under data/; run stage 1")
        if name not in known:
            raise UserError(f"no set {nearest(name, known)} (stage 1 makes the sets)")
        path = self.audio_list(name)
        if not path.is_file():
            raise UserError(f"no {path}; run stage 2 (espnet-ext features CONFIG --sets {name})")
        return path

    @cached_property
    def rate(self) -> int:
        """Samples per second of the audio."""
        if self.config.has_layer_features:
            return ark_definition(self.config).rate
        rate = self._frontend_conf.get("fs", 16000)
        return humanfriendly.parse_size(rate) if isinstance(rate, str) else int(rate)

    @property
    def deltas(self) -> int:
        """Orders of differences that the frontend adds to its features."""
        return self._frontend_conf.get("deltas", 0)

    @property
    def log_mel_definition(self) -> str:
        """The definition of log-mel that the frontend computes."""
        return self._frontend_conf.get("definition", KALDI)

    @property
    def frames_per_second(self) -> float:
        """Feature frames in a second of audio."""
        return FRAMES_PER_SECOND if self.features is None else self.features.frames_per_second

    @property
    def feature_width(self) -> int | None:
        """Features of a frame that are read from arks; None if the frontend computes them."""
        return self.espnet.get("input_size") if self.features is None else self.features.width

    @property
    def _frontend_conf(self) -> dict[str, Any]:
        return self.config.conf("frontend")

    @property
    def token_folder(self) -> Path:
        """Folder of the token list.

        Raises:
            UserError: a ``token_type`` that stage 3 does not make.
        """
        recipe = self.recipe
        if recipe.task == "cls":
            return self.data / "token_list" / recipe.labels
        kind = self.config.token_type
        text = f".{recipe.target}" if recipe.task == "st" else ""
        if recipe.train_set != "train":
            text += f".{recipe.train_set.replace('/', '-')}"
        if kind == "char":
            return self.data / "token_list" / f"char{text}"
        if kind == PRETRAINED:
            name = Path(require_token_source(self.config)).name
            cut = "" if recipe.merges is None else f".{recipe.merges}"
            return self.data / "token_list" / f"{name}{cut}"
        if kind != "bpe":
            raise UserError(f"{self.config.path}: token_type must be {TOKENS}, not {kind}")
        return self.data / "token_list" / f"{recipe.sentencepiece}{recipe.vocabulary}{text}"

    @property
    def tokenizer(self) -> Path | None:
        """ESPnet's ``bpemodel``: SentencePiece's file, or the folder with tokenizer.json.

        None: characters or classes.
        """
        kind = self.config.token_type
        if self.recipe.task == "cls" or kind == "char":
            return None
        return self.token_folder if kind == PRETRAINED else self.token_folder / "bpe.model"

    @property
    def token_list(self) -> Path:
        """The token list that stage 3 writes."""
        return self.token_folder / "tokens.txt"

    @property
    def vocabulary(self) -> int | None:
        """Size of the token list; None before stage 3 has made it."""
        path = self.token_list
        return len(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else None

    @property
    def classes(self) -> list[str]:
        """The classes that stage 3 listed; UserError: it has not run."""
        if self.token_list.is_file():
            return self.token_list.read_text(encoding="utf-8").split()[:-1]
        raise UserError(f"no {self.token_list}; run stage 3")

    # What decides a training.
    def corpus_files(self) -> list[Path]:
        """Files that hold what is learnt from; statistics depend on nothing else."""
        files = [self.audio_list(name) for name in self.sets]
        files += [self.references(name) for name in self.sets]
        files += [file for name in self.sets for file in audio_inputs(set_folder(self.data, name))]
        files += [] if self.features is None else self.features.files
        return [*files, self.token_list]

    def training_files(self) -> list[Path]:
        """Files other than the config whose content decides the training.

        Raises:
            UserError: a model that it starts from, or is made of, is missing.
        """
        start = start_files(self.config, self.root)
        return [*self.corpus_files(), *start, *pretrained_files(self.config, self.root)]
