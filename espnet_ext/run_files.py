"""The files of a run, exp/<tag>: names of its folders and of what several modules read in them."""

import abc
from pathlib import Path

from espnet_ext.errors import UserError, check_name
from espnet_ext.files import weights_file

# Files in the deployed folder that stage 8 writes.
CARD_FILES = CARD, SCORES, LICENCE = "README.md", "scores.json", "LICENSE.md"
_DEPLOY, _DECODE, _SCORE, _IMAGES = "deploy", "decode", "score", "images"


def deployed_holding(run: Path, name: str) -> dict[str, Path]:
    """The deployed models of a run that hold a file or folder ``name``, by variant."""
    return {path.parent.name: path.parent for path in sorted(run.glob(f"{_DEPLOY}/*/{name}"))}


def is_decoded(run: Path) -> bool:
    """True if stage 6 wrote hypotheses of a run."""
    return (run / _DECODE).is_dir()


def decoded_runs(exp: Path) -> list[Path]:
    """All runs below a folder, with those of grids, that stage 6 decoded."""
    return [path.parent for path in exp.glob(f"**/{_DECODE}")]


def results_of(run: Path) -> list[Path]:
    """The results that stage 8 wrote of a run's variants."""
    return sorted(run.glob("result*.json"))


def hypotheses_pattern(method: str, name: str) -> str:
    """A set's hypotheses by one decoding method, of any variant, below the run's folder."""
    return f"{_DECODE}/*/{method}/{name}/text"


def decoded_variants(run: Path, method: str, name: str) -> dict[str, Path]:
    """The hypotheses of a set that a run has, by variant."""
    found = sorted(run.glob(hypotheses_pattern(method, name)))
    return {path.relative_to(run).parts[1]: path for path in found}


class RunFiles(abc.ABC):
    """Names of the files of one variant of a run.

    Attributes:
        variant: the one in question.
    """

    variant: str

    @property
    @abc.abstractmethod
    def folder(self) -> Path:
        """exp/<tag>."""

    @property
    @abc.abstractmethod
    def is_default(self) -> bool:
        """True if this is the variant that the config names."""

    @property
    def espnet_config(self) -> Path:
        """The config.yaml that ESPnet's trainer wrote: what builds the training model."""
        return self.folder / "config.yaml"

    @property
    def espnet_options(self) -> Path:
        """The options that stage 4 gave ESPnet's trainer."""
        return self.folder / "espnet.yaml"

    @property
    def settings(self) -> Path:
        """What decided the training: the config, resolved, and digests of the data."""
        return self.folder / "resolved.json"

    @property
    def calls(self) -> Path:
        """The calls of stage 4 (``bridge.training.run_record``)."""
        return self.folder / "calls.json"

    @property
    def train_record(self) -> Path:
        """The run record that stage 4 writes (``bridge.training.run_record``)."""
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
    def deployed(self) -> Path:
        """Folder of the deployed model."""
        return self.folder / _DEPLOY / self.variant

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
        return self.folder / _DECODE / self.variant

    def decoded(self, method: str, name: str) -> Path:
        """Folder of one set's hypotheses, by one decoding method."""
        return self.decode_folder / method / check_name(name, "the set")

    @property
    def score_folder(self) -> Path:
        """Folder of what stage 7 writes for this variant."""
        return self.folder / _SCORE / self.variant

    @property
    def result(self) -> Path:
        """The result of this variant, which stage 8 writes; ``results_of`` finds those of all."""
        return self.folder / f"result{'' if self.is_default else f'_{self.variant}'}.json"

    @property
    def training_curves(self) -> Path:
        """Plot of the training, which is that of all variants."""
        return self.folder / _IMAGES / "training_curves.png"

    @property
    def images(self) -> Path:
        """Folder of the plots that stage 8 draws of this variant."""
        return self.folder / _IMAGES / ("" if self.is_default else self.variant)
