"""Stage 6: decode test sets with the deployed model by ESPnet's own inference classes.

Methods stand in the config, ``recipe: {decode: {ctc_greedy: {}, ctc_att_beam: {...}}}``.
Writes exp/<tag>/decode/<variant>/<method>/<set>/{text,decode.json}; the real-time factor is
measured afterwards, on 50 utterances of all lengths, in one process with one thread.

Example:
  espnet-ext decode conf/train_hrf_conformer_xs.yaml --sets "test unseen" --nj 2
"""

import argparse
from pathlib import Path

from espnet_ext.bridge.muted import quiet
from espnet_ext.cli.checked import checked_config
from espnet_ext.cli.features import deltas_of
from espnet_ext.cli.train import audio_scp
from espnet_ext.config.training import Config
from espnet_ext.data.features import frames_per_second
from espnet_ext.data.kaldi_dir import audio_inputs, data_sets
from espnet_ext.errors import UserError, at_least, nearest
from espnet_ext.files import Stamp, sha256_file, weights_file, write_json, write_text
from espnet_ext.results.schema import SCHEMA_VERSION


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("config", help="training config")
    parser.add_argument("--tag", help="name of the experiment; default: from the config's name")
    parser.add_argument("--variant", help="deployed form; default: the config's recipe: variant")
    parser.add_argument("--sets", default="test", help="data sets, blanks between")
    parser.add_argument("--nj", type=at_least(1), default=2, help="processes")


def run(args: argparse.Namespace, timed: bool = True) -> None:
    """Decode every set with every method that is not up to date.

    ``timed`` is False where other processes compete for the cores: no real-time factor then.
    """
    config = checked_config(args.config, args.tag)
    variant = args.variant or config.recipe.variant
    model = config.exp / "deploy" / variant
    if not weights_file(model).is_file():
        raise UserError(f"no {model}/model.pth; run stage 5")
    todo = []
    for method, options in config.recipe.decode.items():
        for name in args.sets.split():
            scp = list_of(config, name)
            out = config.exp / "decode" / variant / method / name
            inputs = [scp, weights_file(model), model / "config.yaml"]
            inputs += audio_inputs(Path("data") / name)
            settings = {"schema": SCHEMA_VERSION, "method": method, "options": options}
            stamp = Stamp(out / ".done.json", settings, inputs)
            if stamp.is_current():
                print(f"decode: {out} is up to date")
            else:
                todo.append((method, options or {}, scp, out, stamp))
    if todo:
        _decode(config, model, todo, args.nj, timed)


def list_of(config: Config, name: str) -> Path:
    """The wav.scp or feats.scp of a set.

    Raises:
        UserError: there is no such set, or stage 2 has not run.
    """
    known = data_sets(Path("data"))
    if not known:
        raise UserError("no data directory with wav.scp under data/; run stage 1")
    if name not in known:
        raise UserError(f"no set {nearest(name, known)} (stage 1 makes the sets)")
    scp = audio_scp(config, name)
    if not scp.is_file():
        raise UserError(f"no {scp}; run stage 2")
    return scp


def _decode(config: Config, model: Path, todo: list, nj: int, timed: bool) -> None:
    with quiet():
        from espnet_ext.bridge.footprint import sampling_rate
        from espnet_ext.bridge.inference import decode_set
    rate = None if config.recipe.features == "ark" else sampling_rate(config)
    deltas, frames = deltas_of(config), frames_per_second(config)
    for method, options, scp, out, stamp in todo:
        rows, summary = decode_set(model, method, options, scp, rate, nj, deltas, timed, frames)
        write_text(out / "text", "".join(f"{utt} {text}\n" for utt, text in rows))
        # Stage 8 joins this with files of other stages: they must be of the same model.
        made_by = {"model": sha256_file(weights_file(model)), "options": options}
        write_json(out / "decode.json", summary | made_by)
        stamp.write([out / "text", out / "decode.json"])
        speed = f", RTF {summary['rtf']:.4f}" if timed else ""
        print(f"decode: {out}: {len(rows)} utterances{speed}")
