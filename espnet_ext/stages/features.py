"""Stage 2: features as Kaldi arks, where a config trains on them; or its pretrained model."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from espnet_ext.data.arks import CHECK_SUMS, check_sum
from espnet_ext.data.features import Definition, Fbank
from espnet_ext.data.kaldi_dir import WHOLE, audio_inputs, data_sets, read_table
from espnet_ext.data.parts import Part, begun, remove_parts
from espnet_ext.data.processes import map_processes
from espnet_ext.data.segments import SEGMENTS, cut, set_folder
from espnet_ext.data.speed_perturb import holds_copies, with_copies, write_copies
from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment
from espnet_ext.files import DONE, Stamp, atomic_path, lock, read_json, write_json

SHARD = 250  # utterances in one ark


def write_features(
    experiment: Experiment,
    jobs: int,
    part: Part | None = None,
    named: Sequence[str] | None = None,
) -> None:
    """Write the arks of the data directories that lack them.

    What was begun in parts is completed and joined.

    A set whose utterances are all in data/all, or its copies at other speeds in those of data/all,
    gets a list into the arks of that set. Before, ``recipe: speeds`` writes such copies.

    Args:
        experiment: whose features.
        jobs: processes.
        part: write this part of the arks only; a call without one joins them.
        named: sets that get arks next to those of the config and data/all; None: all sets.

    Raises:
        UserError: no data directory, audio that is missing, undecodable, or of another
            sampling rate, or a self-supervised model that is not there.
    """
    data, recipe = experiment.data, experiment.recipe
    # A mistake is reported before a file is written; a model that is fetched is not there yet.
    if not recipe.sources and experiment.features is not None:
        _require_sets(experiment)
    with lock(experiment.exp / ".prepare.lock"):
        _prepare(experiment, jobs)
    definition = experiment.features
    if definition is None:
        if not recipe.sources:
            print("features: computed by the frontend while training; nothing to do")
        return
    sets = _require_sets(experiment)
    for name in named or ():
        if name not in sets:
            print(f"features: no {data / name}/wav.scp: left out; stage 1 makes it")
    requested = {*sets} if named is None else {*experiment.sets, *named}
    wholes = {
        name: read_table(set_folder(data, name) / "wav.scp")
        for name in (WHOLE, with_copies(WHOLE))
        if name in sets
    }
    lists = 0
    for name in sorted(sets, key=lambda name: name not in wholes):
        out, folder = experiment.ark_folder(name), set_folder(data, name)
        rows = read_table(folder / "wav.scp")
        owner = WHOLE if not holds_copies(name) else with_copies(WHOLE)
        whole_arks = experiment.ark_folder(owner)
        listed = name != owner and bool(rows) and rows.items() <= wholes.get(owner, {}).items()
        unwanted = not listed and name not in requested and name not in wholes
        if unwanted or (listed and part is not None):
            continue
        inputs = [folder / "wav.scp", *audio_inputs(folder)]
        if listed:
            inputs.append(whole_arks / "feats.scp")
            lists += 1
        # Another run may write this set; parts of it run at the same time.
        held = experiment.exp / f".features-{out.parent.name}-{name}.lock"
        with lock(held, shared=part is not None):
            arks = _Arks(folder, out, definition, jobs, inputs)
            _write_set(arks, part, (rows, whole_arks) if listed else None)
    if lists:
        print(f"features: {lists} sets are lists into {experiment.ark_folder(WHOLE).parent}")


def _require_sets(experiment: Experiment) -> list[str]:
    """The sets that may get arks, or lists into those of another set.

    Raises:
        UserError: there is none.
    """
    data, speeds = experiment.data, experiment.recipe.speeds
    sets = [name for name in data_sets(data) if speeds or not holds_copies(name)]
    if not sets:
        raise UserError(f"no data directory with wav.scp under {data}/; run stage 1")
    return sets


def _write_set(
    arks: "_Arks", part: Part | None, listed: tuple[Mapping[str, str], Path] | None
) -> None:
    """Write the arks of a set, or a part of them; or a list of utterances into those of another."""
    out = arks.out
    stamp = Stamp(out / DONE, arks.definition.settings, [*arks.inputs, *arks.definition.files])
    if stamp.is_current():
        if part is None:
            remove_parts(arks.parts)
        if listed is None:
            print(f"features: {out} is up to date")
        return
    arks = dataclasses.replace(arks, inputs=stamp.inputs)
    if part is not None:
        arks.write_part(part)
        return
    with atomic_path(out) as temporary:
        if listed is None:
            arks.write(temporary)
        else:
            _write_list(*listed, temporary)
    tables = [out / name for name in ("feats.scp", "utt2num_frames", CHECK_SUMS)]
    stamp.write([path for path in tables if path.exists()], by_size=sorted(out.glob("*.ark")))
    remove_parts(arks.parts)


def _prepare(experiment: Experiment, jobs: int) -> None:
    """Get the model, cut recordings into utterances, and write copies at other speeds."""
    data, recipe = experiment.data, experiment.recipe
    if recipe.sources:
        fetch_model(experiment)
    for name in data_sets(data):
        if (data / name / SEGMENTS).is_file():
            cut(data, name, jobs)
    if recipe.speeds:
        write_copies(data, recipe.train_set, recipe.speeds, jobs)


def fetch_model(experiment: Experiment) -> None:
    """Put the first source of ``recipe: fetch`` that is at hand where the config looks for it.

    Raises:
        UserError: no source is at hand, no network, or a file with another digest.
    """
    from espnet_ext.data.fetch.sources import take_first

    out = experiment.fetched_model
    print(f"features: {take_first(experiment.recipe.sources, out)}")


def _write_list(rows: Iterable[str], whole: Path, folder: Path) -> None:
    """Write feats.scp and utt2num_frames of utterances ``rows`` that ``whole`` has arks of."""
    folder.mkdir(parents=True)
    for name in ("feats.scp", "utt2num_frames"):
        table = read_table(whole / name)
        (folder / name).write_text("".join(f"{u} {table[u]}\n" for u in rows), "utf-8")


type _Row = tuple[str, str, int, str]  # utterance, "ark:offset" as it will be named, frames, CRC


@dataclass(frozen=True)
class _Arks:
    """The arks of a set, each with the features of some utterances in a row.

    Attributes:
        data: the data directory.
        out: the folder of the arks, once all are there: feats.scp names it.
        definition: what the features are.
        jobs: processes.
        inputs: files that decide the features.
    """

    data: Path
    out: Path
    definition: Definition
    jobs: int
    inputs: Sequence[str | Path]

    @property
    def parts(self) -> Path:
        """Folder of the arks that were written in parts."""
        return self.out.with_name(f"{self.out.name}.parts")

    def is_whole(self, part: Part) -> bool:
        """True if a part is written, from the present inputs."""
        return self._stamp(part).is_current()

    def _stamp(self, part: Part) -> Stamp:
        settings = [self.definition.settings, str(part), CHECK_SUMS]
        return Stamp(self.parts / str(part) / DONE, settings, self.inputs)

    def write_part(self, part: Part) -> None:
        """Write every so many-th ark, unless that was done."""
        folder, stamp = self.parts / str(part), self._stamp(part)
        if stamp.is_current():
            print(f"features: {folder} is up to date")
            return
        with atomic_path(folder) as temporary:
            rows = self._write(temporary, part)
            write_json(temporary / "rows.json", rows)
        stamp.write([folder / "rows.json"], by_size=folder.glob("*.ark"))
        print(f"features: {folder}: {len(rows)} utterances")

    def write(self, folder: Path) -> None:
        """Write feats.<number>.ark and their lists into ``folder``, made here.

        What was begun in parts is completed, and the arks of the parts are moved there.
        """
        parts = begun(self.parts, self.is_whole)
        for part in parts:
            self.write_part(part)
        if not parts:
            rows = self._write(folder)
        else:
            folder.mkdir(parents=True)
            found: dict[str, _Row] = {}
            for part in parts:
                made = self.parts / str(part)
                found |= {row[0]: tuple(row) for row in read_json(made / "rows.json")}
                for ark in made.glob("*.ark"):
                    os.rename(ark, folder / ark.name)
            rows = [found[name] for name in read_table(self.data / "wav.scp")]
        for column, name in enumerate(("feats.scp", "utt2num_frames", CHECK_SUMS), 1):
            lines = (f"{row[0]} {row[column]}\n" for row in rows)
            (folder / name).write_text("".join(lines), "utf-8")

    def _write(self, folder: Path, part: Part | None = None) -> list[_Row]:
        from tqdm import tqdm

        folder.mkdir(parents=True)
        rows = list(read_table(self.data / "wav.scp").items())
        if not rows:
            raise UserError(f"{self.data}/wav.scp: no utterance in it; run stage 1")
        jobs = [
            (rows[k : k + SHARD], folder / name, self.out / name)
            for k in range(0, len(rows), SHARD)
            for name in [f"feats.{k // SHARD}.ark"]
        ]
        if part is not None:
            jobs = list(part.of(jobs))
            rows = [row for lines, *_ in jobs for row in lines]
        write = functools.partial(_write_shard, self.definition)
        found: list[_Row] = []
        with tqdm(total=len(rows), desc=f"features {self.data.name}") as bar:
            for done in map_processes(write, jobs, self.jobs, chunk=1):
                found += done
                bar.update(len(done))
        return found


def _write_shard(
    definition: Definition, job: tuple[list[tuple[str, str]], Path, Path]
) -> list[_Row]:
    """Write one ark; return its rows."""
    import kaldiio
    import torch

    from espnet_ext.data.audio import read_wave

    lines, path, final = job
    torch.set_num_threads(1)
    extract = _extractor(definition)
    rows = []
    with open(path, "wb") as stream:
        for utterance, audio in lines:
            feats = extract(read_wave(audio, utterance, definition.rate))
            offset = stream.tell() + len(utterance.encode()) + 1
            kaldiio.save_ark(stream, {utterance: feats})
            rows.append((utterance, f"{final}:{offset}", len(feats), check_sum(feats)))
    return rows


def _extractor(definition: Definition) -> Callable[[np.ndarray], np.ndarray]:
    """The function from a wave (samples,) to its features (frames, width)."""
    if isinstance(definition, Fbank):
        from espnet_ext.data.fbank import fbank_extractor

        return fbank_extractor(definition)
    from espnet_ext.encoders.pretrained.features import layer_extractor

    return layer_extractor(definition)
