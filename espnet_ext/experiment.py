"""A training config resolved in its recipe's folder: every path and number that stages read.

Stages, and the modules below them, take an ``Experiment`` and derive nothing from the raw config,
which goes to ESPnet's parser. The files of exp/<tag> are named in ``run_files``.
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
    fetched_folder,
    pretrained_files,
    read_starts,
    require_token_source,
)
from espnet_ext.config.recipe_errors import TOKENS, ctc_weight, recipe_problems
from espnet_ext.config.training import EXPERIMENTS, Config, Recipe, load_config
from espnet_ext.data.features import FRAMES_PER_SECOND, KALDI, Definition, ark_definition
from espnet_ext.data.kaldi_dir import audio_inputs, data_sets
from espnet_ext.data.segments import set_folder
from espnet_ext.data.speed_perturb import holds_copies, with_copies
from espnet_ext.errors import UserError, check_name, nearest
from espnet_ext.languages import text_in
from espnet_ext.run_files import RunFiles

DATA = Path("data")  # the data directories, below a recipe's folder
FAMILY = "family"  # variant that holds all members of a nested family in one file


@dataclass(frozen=True)
class Experiment(RunFiles):
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

    @property
    def is_default(self) -> bool:
        """True if this is the variant that the config names."""
        return self.variant == self.recipe.variant

    @property
    def seed(self) -> int:
        """ESPnet's seed."""
        return int(self.espnet.get("seed", 0))

    @property
    def ctc_weight(self) -> float:
        """Weight of the CTC loss."""
        return ctc_weight(self.espnet)

    @property
    def family_options(self) -> dict[str, Any]:
        """Options of the nested family, if the encoder is one."""
        return self.config.conf("encoder").get("nested") or {}

    # Folders and files.

    @property
    def exp(self) -> Path:
        """Folder of all experiments of the recipe."""
        return self.root / EXPERIMENTS

    @property
    def folder(self) -> Path:
        """exp/<tag>."""
        return self.exp / self.config.tag

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

    def other_run(self, tag: str) -> Path:
        """Folder of another run of the recipe; it need not exist."""
        return self.exp / tag

    # Data, features and tokens.

    @property
    def data(self) -> Path:
        """Folder of the data directories."""
        return self.root / DATA

    def set_folder(self, name: str) -> Path:
        """The data directory of a set; of one with segments that of its cut utterances."""
        return set_folder(self.data, name)

    def utt2spk(self, name: str) -> Path:
        """The speakers of a set's utterances."""
        return self.data / name / "utt2spk"

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
        return self.set_folder(name) / "wav.scp"

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
    def normalises(self) -> bool:
        """True if training needs means and deviations of the features (``global_mvn``)."""
        return self.espnet.get("normalize") == "global_mvn"

    @property
    def fetched_model(self) -> Path:
        """Where stage 2 puts what ``recipe: fetch`` names."""
        return Path(str(fetched_folder(self.espnet)))

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
        files += [file for name in self.sets for file in audio_inputs(self.set_folder(name))]
        files += [] if self.features is None else self.features.files
        return [*files, self.token_list]

    def training_files(self) -> list[Path]:
        """Files other than the config whose content decides the training.

        Raises:
            UserError: a model that it starts from, or is made of, is missing.
        """
        start = [one.path for one in read_starts(self.config, self.root)]
        return [*self.corpus_files(), *start, *pretrained_files(self.config, self.root)]
