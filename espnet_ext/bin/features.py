"""Stage 2: write Kaldi-definition log-mel features as Kaldi arks, if the config trains on them.

With ``recipe: {features: raw}`` the frontend computes features while training and there is
nothing to do here. With ``features: ark`` every data directory under data/ gets
dump/fbank<bins>/<set>/{feats.scp,utt2num_frames,*.ark}.

Example:
  espnet-ext features conf/train_hrf_conformer_xs.yaml --nj 2
"""

import argparse
from pathlib import Path

from espnet_ext.config import Config, load_config
from espnet_ext.errors import UserError
from espnet_ext.files import Stamp, atomic_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("config", help="training config")
    parser.add_argument("--data", default="data", help="folder of data directories")
    parser.add_argument("--nj", type=int, default=2, help="processes")


def run(args: argparse.Namespace) -> None:
    """Write the arks of every data directory that lacks them."""
    config = load_config(args.config)
    if config.recipe.features == "raw":
        print("features: computed by the frontend while training; nothing to do")
        return
    bins, rate = ark_definition(config)
    sets = sorted(p.parent for p in Path(args.data).glob("*/wav.scp"))
    if not sets:
        raise UserError(f"no data directory with wav.scp under {args.data}/; run stage 1")
    for data in sets:
        out = ark_dir(config, data.name)
        stamp = Stamp(out / ".done.json", {"bins": bins, "fs": rate}, [data / "wav.scp"])
        if stamp.is_current():
            print(f"features: {out} is up to date")
            continue
        with atomic_path(out) as temporary:
            write_arks(data, temporary, out, bins, rate, args.nj)
        stamp.write(sorted(p for p in out.iterdir() if p.suffix in (".ark", ".scp")))


def ark_definition(config: Config) -> tuple[int, int]:
    """Return (mel bins, sampling rate) of the config's Kaldi frontend."""
    if config.espnet.get("frontend") != "kaldi_fbank":
        raise UserError(f"{config.path}: recipe: features: ark needs frontend: kaldi_fbank")
    conf = config.espnet.get("frontend_conf") or {}
    return conf.get("n_mels", 80), conf.get("fs", 16000)


def ark_dir(config: Config, name: str) -> Path:
    """Folder of the arks of data set ``name``."""
    return Path("dump") / f"fbank{ark_definition(config)[0]}" / name


def write_arks(data: Path, folder: Path, final: Path, bins: int, rate: int, nj: int) -> None:
    """Write feats.<job>.ark, feats.scp and utt2num_frames of one data directory."""
    import multiprocessing

    from tqdm import tqdm

    folder.mkdir(parents=True)
    lines = (data / "wav.scp").read_text(encoding="utf-8").splitlines()
    shards = [lines[k::nj] for k in range(nj)]
    jobs = [
        (shard, folder / f"feats.{k}.ark", final / f"feats.{k}.ark", bins, rate)
        for k, shard in enumerate(shards)
        if shard
    ]
    with multiprocessing.get_context("spawn").Pool(len(jobs)) as pool:
        parts = pool.imap_unordered(_write_shard, jobs)
        rows = sorted(
            row
            for part in tqdm(parts, total=len(jobs), desc=f"features {data.name}")
            for row in part
        )
    (folder / "feats.scp").write_text("".join(f"{u} {where}\n" for u, where, _ in rows))
    (folder / "utt2num_frames").write_text("".join(f"{u} {n}\n" for u, _, n in rows))


def _write_shard(job: tuple[list[str], Path, Path, int, int]) -> list[tuple[str, str, int]]:
    """Write one ark; return (utterance, "ark:offset" as it will be named, frames)."""
    import kaldiio
    import soundfile
    import torch

    from espnet_ext.data.fbank import kaldi_fbank

    lines, path, final, bins, rate = job
    torch.set_num_threads(1)
    rows = []
    with open(path, "wb") as stream:
        for line in lines:
            utterance, audio = line.split(maxsplit=1)
            wave, fs = soundfile.read(audio, dtype="float32")
            if fs != rate:
                raise UserError(f"{utterance}: {audio} has {fs} Hz, the config says {rate}")
            feats = kaldi_fbank(torch.from_numpy(wave), rate, bins).numpy()
            offset = stream.tell() + len(utterance.encode()) + 1
            kaldiio.save_ark(stream, {utterance: feats})
            rows.append((utterance, f"{final}:{offset}", len(feats)))
    return rows
