"""Stage 2: write Kaldi-definition log-mel features as Kaldi arks, if the config trains on them.

With ``recipe: {features: raw}`` the frontend computes features while training and there is
nothing to do here. With ``features: ark`` every data directory under data/ gets
dump/fbank<bins>/<set>/{feats.scp,utt2num_frames,*.ark}.

Example:
  espnet-ext features conf/train_hrf_conformer_xs.yaml --nj 2
"""

import argparse
import functools
from pathlib import Path

from espnet_ext.bin.checked import checked_config
from espnet_ext.config import Config
from espnet_ext.data.kaldi_dir import audio_inputs, read_table
from espnet_ext.data.parallel import map_processes
from espnet_ext.errors import UserError, at_least
from espnet_ext.files import Stamp, atomic_path
from espnet_ext.tasks.rules import is_int

_SHARD = 250  # utterances in one ark


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("config", help="training config")
    parser.add_argument("--data", default="data", help="folder of data directories")
    parser.add_argument("--nj", type=at_least(1), default=2, help="processes")


def run(args: argparse.Namespace) -> None:
    """Write the arks of every data directory that lacks them.

    Raises:
        UserError: no data directory, or audio that is missing, undecodable, or of another
            sampling rate.
    """
    config = checked_config(args.config)
    if config.recipe.features == "raw":
        print("features: computed by the frontend while training; nothing to do")
        return
    bins, rate = ark_definition(config)
    sets = sorted(p.parent for p in Path(args.data).glob("*/wav.scp"))
    if not sets:
        raise UserError(f"no data directory with wav.scp under {args.data}/; run stage 1")
    todo = []
    for data in sets:
        out = ark_dir(config, data.name)
        inputs = [data / "wav.scp", *audio_inputs(data)]
        stamp = Stamp(out / ".done.json", {"bins": bins, "fs": rate}, inputs)
        if stamp.is_current():
            print(f"features: {out} is up to date")
        else:
            todo.append((data, out, stamp))
    if not todo:
        return
    for data, out, stamp in todo:
        with atomic_path(out) as temporary:
            write_arks(data, temporary, out, (bins, rate), args.nj)
        stamp.write(sorted(p for p in out.iterdir() if p.suffix in (".ark", ".scp")))


def ark_definition(config: Config) -> tuple[int, int]:
    """Return (mel bins, sampling rate) of the config's Kaldi frontend.

    Raises:
        UserError: one of the two is not a whole number above 0.
    """
    if config.espnet.get("frontend") != "kaldi_fbank":
        raise UserError(f"{config.path}: recipe: features: ark needs frontend: kaldi_fbank")
    conf = {"n_mels": 80, "fs": 16000} | (config.espnet.get("frontend_conf") or {})
    for key in ("n_mels", "fs"):
        if not is_int(conf[key]) or conf[key] < 1:
            raise UserError(
                f"{config.path}: frontend_conf: {key} must be a whole number, not {conf[key]!r}"
            )
    return conf["n_mels"], conf["fs"]


def ark_dir(config: Config, name: str) -> Path:
    """Folder of the arks of data set ``name``."""
    return Path("dump") / f"fbank{ark_definition(config)[0]}" / name


def write_arks(data: Path, folder: Path, final: Path, definition: tuple[int, int], nj: int) -> None:
    """Write feats.<shard>.ark, feats.scp and utt2num_frames of one data directory.

    Args:
        data: the data directory.
        folder: where to write; made here.
        final: what the folder will be called when it is whole: feats.scp names it.
        definition: mel bins, sampling rate.
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
    definition: tuple[int, int], job: tuple[list[tuple[str, str]], Path, Path]
) -> list[tuple[str, str, int]]:
    """Write one ark; return (utterance, "ark:offset" as it will be named, frames)."""
    import kaldiio
    import torch

    from espnet_ext.data.audio import read_wave
    from espnet_ext.data.fbank import kaldi_fbank

    (bins, rate), (lines, path, final) = definition, job
    torch.set_num_threads(1)
    rows = []
    with open(path, "wb") as stream:
        for utterance, audio in lines:
            wave = read_wave(audio, utterance, rate)
            feats = kaldi_fbank(torch.from_numpy(wave), rate, bins).numpy()
            offset = stream.tell() + len(utterance.encode()) + 1
            kaldiio.save_ark(stream, {utterance: feats})
            rows.append((utterance, f"{final}:{offset}", len(feats)))
    return rows
