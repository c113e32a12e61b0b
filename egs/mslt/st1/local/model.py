#!/usr/bin/env python3
"""Fetch a trained model from the recipe that trained it: MSLT has nothing to train on.

Example:
  python local/model.py conf/train_stream_paper.yaml --trained ../../covost2/st1 --part tokens
  python local/model.py conf/train_stream_paper.yaml --trained ../../covost2/st1 --part model

Copies the token list, or the experiment of the same name with the deployed form, so that the
stages from 5 on run here as there. Refuses an experiment of another config.
"""

import argparse
import contextlib
import shutil
import sys
from pathlib import Path

from espnet_ext.cli.checked import checked_config
from espnet_ext.cli.tokens import token_dir
from espnet_ext.cli.train import averaged_model, decisive
from espnet_ext.config.training import Config
from espnet_ext.errors import UserError, nearest, run_cli
from espnet_ext.files import Stamp, atomic_path, read_json


def fetch_tokens(config: Config, trained: Path) -> None:
    """Copy the token list.

    Raises:
        UserError: the other recipe has none.
    """
    folder = token_dir(config)
    if not (trained / folder / "tokens.txt").is_file():
        raise UserError(f"no {trained / folder}/tokens.txt; run stages 1 to 3 of {trained}/run.sh")
    _copy(trained, sorted(path.name for path in (trained / folder).glob("[!.]*")), folder)


def fetch_model(config: Config, trained: Path, variant: str) -> None:
    """Copy the experiment: record of the training, averaged checkpoint, deployed form.

    Raises:
        UserError: there is none, it was trained with another config, or not deployed so.
    """
    source = trained / config.exp
    way_out = f"run stages 1 to 5 of {trained}/run.sh with this config"
    if not (source / "train.json").is_file():
        known = [path.parent.name for path in (trained / "exp").glob("*/train.json")]
        raise UserError(f"no trained {nearest(config.tag, known)} in {trained}/exp; {way_out}")
    settings = read_json(source / "resolved.json")["config"]
    before, now = decisive(settings), decisive(config.as_dict())
    # How long was trained, options after -- may say.
    other = [k for k in {**before, **now} if k != "max_epoch" and before.get(k) != now.get(k)]
    if other:
        names = ", ".join(other)
        raise UserError(f"{source} was trained with other settings ({names}) than {config.path}")
    deployed = Path("deploy") / variant
    if not (source / deployed / "model.pth").is_file():
        raise UserError(f"no {source / deployed}/model.pth; {way_out}")
    with contextlib.chdir(trained):
        checkpoint = averaged_model(config)
    files = [checkpoint.name, f"{config.recipe.average_by}.ave.pth", "config.yaml", "train.json"]
    files += [log.name for log in source.glob("train.log")]
    files += [str(deployed / path.name) for path in (source / deployed).iterdir()]
    files.append(f"deploy/.{variant}.done.json")
    _copy(trained, files, config.exp)


def _copy(trained: Path, names: list[str], folder: Path) -> None:
    """Copy files of a folder of the other recipe into the same one here, with their times.

    ESPnet's link to the averaged checkpoint stays a link: its target tells of how many it is.
    """
    stamp = Stamp(folder / ".fetched.json", names, [trained / folder / name for name in names])
    if stamp.is_current():
        print(f"{folder} is up to date")
        return
    for name in names:
        with atomic_path(folder / name) as temporary:
            link = name.endswith(".ave.pth")
            shutil.copy2(trained / folder / name, temporary, follow_symlinks=not link)
    stamp.write(folder / name for name in names)
    print(f"{folder}: {len(names)} files from {trained}")


def fetch(args: argparse.Namespace) -> None:
    """Copy what ``--part`` says.

    Raises:
        UserError: options for a training, a folder that is no recipe, or what the parts raise.
    """
    if args.espnet:
        raise UserError(f"nothing is trained here: give {args.espnet[0]} to {args.trained}/run.sh")
    config, trained = checked_config(args.config), Path(args.trained)
    if not (trained / "exp").is_dir():
        raise UserError(f"{trained}: no experiment in it; give --trained DIR, a recipe that ran")
    if args.part == "tokens":
        fetch_tokens(config, trained)
    else:
        fetch_model(config, trained, args.variant or config.recipe.variant)


def main() -> None:
    """Read the command line and fetch."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="config, of the same name where it was trained")
    parser.add_argument("--trained", required=True, metavar="DIR", help="folder of that recipe")
    parser.add_argument("--part", choices=("tokens", "model"), required=True)
    parser.add_argument("--variant", help="deployed form; default: the config's")
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:cut])
    args.espnet = words[cut + 1 :]
    sys.exit(run_cli("local/model.py", lambda: fetch(args)))


if __name__ == "__main__":
    main()
