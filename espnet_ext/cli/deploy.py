"""Stage 5: turn the averaged model into its deployed form (merged, ...), verified.

Writes exp/<tag>/deploy/<variant>/{model.pth,config.yaml,feats_stats.npz,deploy.json}, which
stock ESPnet loads. Fails and writes nothing if its output on real speech differs from that
of the training form by more than 1e-5, or if a key or shape differs from stock ESPnet's.

A member of a nested family at 8, 4 or 2 bits is packed: model.safetensors, which takes this package
to load, in the place of model.pth. So is a form that is rounded after its training, merged+4b.
With --family all members go into one file, exp/<tag>/deploy/family/family.safetensors, beside
family.json that lists them; take one out by
espnet_ext.bridge.family_models.load(FILE, depth=, width=, bits=, max_bytes=).

Example:
  espnet-ext deploy conf/train_hrf_conformer_xs.yaml --variant merged
  espnet-ext deploy conf/train_nested_conformer_xs.yaml --variant 6L-384-4b
  espnet-ext deploy conf/train_nested_conformer_xs.yaml --family
"""

import argparse
from pathlib import Path

from espnet_ext.bridge.muted import quiet
from espnet_ext.cli.features import deltas_of
from espnet_ext.cli.train import audio_scp, averaged_model
from espnet_ext.config.training import Config, load_config
from espnet_ext.data.features import frames_per_second
from espnet_ext.data.kaldi_dir import read_table
from espnet_ext.errors import UserError
from espnet_ext.files import Stamp, weights_file, write_json

FAMILY = "family"  # in the place of a variant's name
_UTTERANCES = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("config", help="training config")
    parser.add_argument("--tag", help="name of the experiment; default: from the config's name")
    parser.add_argument("--variant", help="deployed form; default: the config's recipe: variant")
    parser.add_argument("--family", action="store_true", help="all members, in one file")
    parser.add_argument("--checkpoint", type=Path, help="instead of the averaged model")


def run(args: argparse.Namespace) -> None:
    """Deploy one variant, or a family."""
    config = load_config(args.config, args.tag)
    if args.family:
        _deploy_family(config, args)
        return
    variant = args.variant or config.recipe.variant
    checkpoint = args.checkpoint or averaged_model(config)
    folder = config.exp / "deploy" / variant
    stamp = deploy_stamp(config, variant, checkpoint)
    if stamp.is_current():
        print(f"deploy: {folder} is up to date")
        return
    with quiet():
        from espnet_ext.bridge.deployed_folder import deploy_checkpoint
        from espnet_ext.bridge.footprint import sampling_rate
    rate = sampling_rate(config)
    waves = dev_inputs(config, rate)
    made = deploy_checkpoint(
        config.exp / "config.yaml",
        checkpoint,
        variant,
        waves,
        rate,
        folder,
        deltas=deltas_of(config),
        frames=frames_per_second(config),
    )
    stamp.write(sorted(p for p in folder.iterdir() if p.is_file()))
    print(
        f"deploy: {weights_file(folder)}: {made['parameters']['total']:,} parameters "
        f"(training form {made['training_parameters']['total']:,}), {made['bytes']:,} bytes, "
        f"largest difference {made['verified']['max_difference']:.1e} "
        f"on {made['verified']['utterances']} utterances"
    )


def _deploy_family(config: Config, args: argparse.Namespace) -> None:
    """Write the family file."""
    if args.variant:
        raise UserError("--family holds all variants: leave --variant out")
    checkpoint = args.checkpoint or averaged_model(config)
    folder = config.exp / "deploy" / FAMILY
    stamp = deploy_stamp(config, FAMILY, checkpoint)
    if stamp.is_current():
        print(f"deploy: {folder} is up to date")
        return
    with quiet():
        from espnet_ext.bridge.family_models import write
        from espnet_ext.bridge.footprint import sampling_rate
    rate = sampling_rate(config)
    path = folder / "family.safetensors"
    waves = dev_inputs(config, rate)
    made = write(config.exp / "config.yaml", checkpoint, waves, rate, path, deltas_of(config))
    size = path.stat().st_size
    write_json(folder / "family.json", {"bytes": size, "members": made})
    stamp.write([path, folder / "family.json"])
    apart = sum(member["bytes"] for member in made)
    worst = max(member["max_difference"] for member in made)
    print(
        f"deploy: {path}: {len(made)} members, {size:,} bytes ({apart:,} in files of their own), "
        f"largest difference {worst:.1e} on {len(waves)} utterances"
    )


def deploy_stamp(config: Config, variant: str, checkpoint: Path) -> Stamp:
    """The stamp of a deployed form; beside its folder, which is replaced as a whole."""
    path = config.exp / "deploy" / f".{variant}.done.json"
    return Stamp(path, {"variant": variant}, [checkpoint, config.exp / "config.yaml"])


def dev_inputs(config: Config, rate: int) -> list:
    """The first utterances of the development set as tensors (samples,) in [-1, 1].

    Where a self-supervised model made the features: as its features (frames, width).
    """
    import kaldiio
    import torch

    from espnet_ext.data.audio import read_wave

    made = config.espnet.get("frontend") == "ssl"
    scp = Path("data") / config.recipe.dev_set / "wav.scp"
    if made:
        scp = audio_scp(config, config.recipe.dev_set)
    if not scp.is_file():
        raise UserError(f"no {scp}; run stage {2 if made else 1}")
    rows = list(read_table(scp).items())[:_UTTERANCES]
    if not rows:
        raise UserError(f"{scp}: no utterance in it; run stage 1")
    if made:
        return [torch.from_numpy(kaldiio.load_mat(where).copy()) for _, where in rows]
    return [torch.from_numpy(read_wave(path, utterance, rate)) for utterance, path in rows]
