"""Stage 4, before the training: statistics of the features, and the lengths of all utterances."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from espnet_ext.data.kaldi_dir import read_table
from espnet_ext.data.parts import Part, begun, remove_parts
from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment
from espnet_ext.files import DONE, Stamp, atomic_path, lock, write_text

ROLES = ("train", "valid")  # ESPnet's names of the training set and the development set
# ESPnet's options that decide the features and the lengths of the texts.
_STATISTICS = (
    *("frontend", "frontend_conf", "input_size", "train_dtype"),
    *("speech_volume_normalize", "rir_scp", "noise_scp", "cleaner", "g2p"),
    *("non_linguistic_symbols", "use_preprocessor", "preprocessor", "preprocessor_conf"),
)


def target_of(experiment: Experiment) -> str:
    """ESPnet's name of what is learnt."""
    return "label" if experiment.recipe.task == "cls" else "text"


class Statistics:
    """Statistics of the training and development set, shared by configs of one recipe.

    Args:
        experiment: whose statistics.
        data: ESPnet's data options by role: file, name, type.
        log: of ESPnet.

    Attributes:
        folder: exp/stats_<digest> of the features and tokens.
    """

    def __init__(self, experiment: Experiment, data: dict[str, list[str]], log: Path):
        self.experiment, self.data, self.log = experiment, data, log
        self._settings: dict[str, Any] = {
            "data": data,
            "read": {
                key: experiment.espnet[key] for key in _STATISTICS if key in experiment.espnet
            },
            "tokens": str(experiment.token_folder),
        }
        digest = hashlib.sha256(json.dumps(self._settings, sort_keys=True).encode())
        self.folder = experiment.exp / f"stats_{digest.hexdigest()[:8]}"
        self._parts = self.folder / "parts"
        self._inputs = experiment.corpus_files()
        self._target = target_of(experiment)
        self._tables = [
            f"{role}/{kind}_shape" for role in ROLES for kind in ("speech", self._target)
        ]

    def shapes(self, role: str) -> list[Path]:
        """The lengths of a set's utterances, and of what is learnt."""
        return [self.folder / role / f"{kind}_shape" for kind in ("speech", self._target)]

    def collect(self, command: Sequence[str]) -> None:
        """Run ESPnet's collect_stats once; what was begun in parts is completed and joined.

        Args:
            command: ESPnet's options of the training, without those of its sets and batches.

        Raises:
            UserError: an error of ESPnet.
        """
        # Two configs of one recipe may train at once and share this folder.
        with lock(self.folder / ".lock"):
            stamp = Stamp(self.folder / DONE, self._settings, self._inputs)
            if stamp.is_current():
                remove_parts(self._parts)
                return
            print(f"train: collecting statistics into {self.folder}")
            parts = begun(self._parts, lambda part: self._stamp(part).is_current())
            for part in parts:
                self._collect_part(command, part)
            if parts:
                self._join(parts)
            else:
                self._run(command, self.folder)
            self._order()
            stamp.write(self._made(self.folder))
            remove_parts(self._parts)

    def part_folder(self, part: Part) -> Path:
        """Where a part's statistics lie until they are joined."""
        return self._parts / str(part)

    def collect_part(self, command: Sequence[str], part: Part) -> None:
        """Run it for every so many-th utterance; ``collect`` joins the parts.

        Raises:
            UserError: a set has fewer utterances than there are parts, or an error of ESPnet.
        """
        with lock(self.folder / ".lock", shared=True):
            if Stamp(self.folder / DONE, self._settings, self._inputs).is_current():
                print(f"train: {self.folder} is up to date")
            else:
                self._collect_part(command, part)

    def _made(self, folder: Path) -> list[Path]:
        sums = [f"{role}/feats_stats.npz" for role in ROLES]
        return [folder / name for name in (*self._tables, *sums)]

    def _stamp(self, part: Part) -> Stamp:
        settings = {**self._settings, "part": str(part)}
        return Stamp(self.part_folder(part) / DONE, settings, self._inputs)

    def _collect_part(self, command: Sequence[str], part: Part) -> None:
        stamp = self._stamp(part)
        folder = stamp.path.parent
        if stamp.is_current():
            print(f"train: {folder} is up to date")
            return
        keys = []
        for role, name in zip(ROLES, self.experiment.sets, strict=True):
            utterances = list(read_table(self.experiment.audio_list(name)))
            if len(utterances) < part.total:
                raise UserError(
                    f"--part: {name} has {len(utterances)} utterances; make fewer parts"
                )
            path = folder / f"{role}.keys"
            write_text(path, "".join(f"{one}\n" for one in part.of(utterances)))
            keys += [f"--{role}_shape_file", str(path)]
        self._run([*command, *keys], folder)
        stamp.write(self._made(folder))
        print(f"train: {folder}: the statistics of this part")

    def _run(self, command: Sequence[str], folder: Path) -> None:
        from espnet_ext.bridge.training.trainer import run_task

        sets = [word for role in ROLES for word in set_options(role, self.data[role])]
        # Statistics do not depend on batches of the training's size, nor on its model.
        options = ["--collect_stats", "true", "--output_dir", str(folder), "--normalize", "none"]
        options += ["--batch_type", "unsorted", "--batch_size", "32", "--ngpu", "0"]
        run_task([*command, *sets, *options], self.log, self.experiment.recipe.task)

    def _join(self, parts: Iterable[Part]) -> None:
        from espnet2.bin.aggregate_stats_dirs import aggregate_stats_dirs

        folders = [self.part_folder(part) for part in parts]
        aggregate_stats_dirs(folders, self.folder, "ERROR", skip_sum_stats=False)

    def _order(self) -> None:
        """Lengths in the order of the utterances: reading processes and parts change it."""
        for role, name in zip(ROLES, self.experiment.sets, strict=True):
            utterances = list(read_table(self.experiment.audio_list(name)))
            for path in self.shapes(role):
                table = read_table(path)
                if list(table) != utterances:
                    write_text(path, "".join(f"{one} {table[one]}\n" for one in utterances))


def set_options(role: str, triples: Iterable[str], shapes: Iterable[Path] = ()) -> list[str]:
    """ESPnet's options of a set: its files, and the lengths of its utterances."""
    options = []
    for triple in triples:
        options += [f"--{role}_data_path_and_name_and_type", triple]
    for path in shapes:
        options += [f"--{role}_shape_file", str(path)]
    return options


def split_options(statistics: Statistics, splits: int) -> list[str]:
    """ESPnet's options of a training set that is read in several lists, one after the other.

    Args:
        statistics: of the set; the lists are in their folder.
        splits: how many lists.

    Raises:
        UserError: the set has fewer utterances, or its files are of other utterances.
    """
    folder = statistics.folder / f"splits_{splits}"
    data = [triple.split(",") for triple in statistics.data["train"]]
    sources = {name: path for path, name, _ in data}
    sources |= {path.name: str(path) for path in statistics.shapes("train")}
    with lock(statistics.folder / ".lock"):
        stamp = Stamp(folder / DONE, [splits, list(sources)], sources.values())
        if not stamp.is_current():
            _split(statistics, sources, splits, folder)
            stamp.write(path for path in sorted(folder.glob("*/*")) if path.is_file())
    triples = [f"{folder / name},{name},{kind}" for _, name, kind in data]
    shapes = [folder / path.name for path in statistics.shapes("train")]
    return ["--multiple_iterator", "true", *set_options("train", triples, shapes)]


def _split(statistics: Statistics, sources: dict[str, str], splits: int, folder: Path) -> None:
    """Write every file, by its name, as a folder of lists."""
    from espnet2.bin.split_scps import split_scps

    experiment = statistics.experiment
    count = len(read_table(experiment.audio_list(experiment.sets[0])))
    if count < splits:
        raise UserError(f"recipe: splits: {splits}, but the training set has {count} utterances")
    try:
        with atomic_path(folder) as scratch:
            split_scps(list(sources.values()), splits, list(sources), str(scratch), "ERROR")
    except RuntimeError as error:  # statistics of older versions may be in another order
        raise UserError(
            f"{', '.join(sources.values())}: {error}; run stages 1 to 3 again, or remove "
            f"{statistics.folder}"
        ) from None
