"""Stage 2: features as Kaldi arks, where a config trains on them; or its pretrained model."""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from espnet_ext.config.pretrained import fetched_folder
from espnet_ext.data.features import Definition, Fbank
from espnet_ext.data.kaldi_dir import WHOLE, audio_inputs, data_sets, read_table
from espnet_ext.data.processes import map_processes
from espnet_ext.data.segments import SEGMENTS, cut, set_folder
from espnet_ext.data.speeds import holds_copies, with_copies, write_copies
from espnet_ext.errors import UserError
from espnet_ext.experiment import Experiment
from espnet_ext.files import Stamp, atomic_path

_SHARD = 250  # utterances in one ark


def write_features(experiment: Experiment, jobs: int) -> None:
    """Write the arks of every data directory of the recipe that lacks them.

    A set whose utterances are all in data/all, or its copies at other speeds in those of data/all,
    gets a list into the arks of that set. Before, ``recipe: speeds`` writes such copies.

    Raises:
        UserError: no data directory, audio that is missing, undecodable, or of another
            sampling rate, or a self-supervised model that is not there.
    """
    data, recipe = experiment.data, experiment.recipe
    if recipe.sources:
        fetch_model(experiment)
    for name in data_sets(data):
        if (data / name / SEGMENTS).is_file():
            cut(data, name, jobs)
    if recipe.speeds:
        write_copies(data, recipe.train_set, recipe.speeds, jobs)
    definition = experiment.features
    if definition is None:
        if not recipe.sources:
            print("features: computed by the frontend while training; nothing to do")
        return
    sets = [name for name in data_sets(data) if recipe.speeds or not holds_copies(name)]
    if not sets:
        raise UserError(f"no data directory with wav.scp under {data}/; run stage 1")
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
        part = name != owner and bool(rows) and rows.items() <= wholes.get(owner, {}).items()
        inputs = [folder / "wav.scp", *audio_inputs(folder)]
        if part:
            inputs.append(whole_arks / "feats.scp")
            lists += 1
        stamp = Stamp(out / ".done.json", definition.settings, [*inputs, *definition.files])
        if stamp.is_current():
            if not part:
                print(f"features: {out} is up to date")
            continue
        with atomic_path(out) as temporary:
            if part:
                _write_part(rows, whole_arks, temporary)
            else:
                _write_arks(folder, temporary, out, definition, jobs)
        stamp.write(sorted(p for p in out.iterdir() if p.suffix in (".ark", ".scp")))
    if lists:
        print(f"features: {lists} sets are lists into {experiment.ark_folder(WHOLE).parent}")


def fetch_model(experiment: Experiment) -> None:
    """Put the first source of ``recipe: fetch`` that is at hand where the config looks for it.

    Raises:
        UserError: no source is at hand, no network, or a file with another digest.
    """
    from espnet_ext.data.fetch.sources import take_first

    out = Path(str(fetched_folder(experiment.espnet)))
    print(f"features: {take_first(experiment.recipe.sources, out)}")


def _write_part(rows: Iterable[str], whole: Path, folder: Path) -> None:
    """Write feats.scp and utt2num_frames of utterances ``rows`` that ``whole`` has arks of."""
    folder.mkdir(parents=True)
    for name in ("feats.scp", "utt2num_frames"):
        table = read_table(whole / name)
        (folder / name).write_text("".join(f"{u} {table[u]}\n" for u in rows))


def _write_arks(data: Path, folder: Path, final: Path, definition: Definition, nj: int) -> None:
    """Write feats.<shard>.ark, feats.scp and utt2num_frames of one data directory.

    Args:
        data: the data directory.
        folder: where to write; made here.
        final: what the folder will be called when it is whole: feats.scp names it.
        definition: what the features are.
        nj: processes.
    """
    from tqdm import tqdm

    folder.mkdir(parents=True)
    rows = list(read_table(data / "wav.scp").items())
    if not rows:
        raise UserError(f"{data}/wav.scp: no utterance in it; run stage 1")
    jobs = [
        (rows[k : k + _SHARD], *(place / f"feats.{k // _SHARD}.ark" for place in (folder, final)))
        for k in range(0, len(rows), _SHARD)
    ]
    parts = map_processes(functools.partial(_write_shard, definition), jobs, nj, chunk=1)
    with tqdm(total=len(rows), desc=f"features {data.name}") as bar:
        found = []
        for part in parts:
            found += part
            bar.update(len(part))
    (folder / "feats.scp").write_text("".join(f"{u} {where}\n" for u, where, _ in found))
    (folder / "utt2num_frames").write_text("".join(f"{u} {n}\n" for u, _, n in found))


def _write_shard(
    definition: Definition, job: tuple[list[tuple[str, str]], Path, Path]
) -> list[tuple[str, str, int]]:
    """Write one ark; return (utterance, "ark:offset" as it will be named, frames)."""
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
            rows.append((utterance, f"{final}:{offset}", len(feats)))
    return rows


def _extractor(definition: Definition) -> Callable[[np.ndarray], np.ndarray]:
    """The function from a wave (samples,) to its features (frames, width)."""
    if isinstance(definition, Fbank):
        from espnet_ext.data.fbank import fbank_extractor

        return fbank_extractor(definition)
    from espnet_ext.encoders.pretrained.features import layer_extractor

    return layer_extractor(definition)
