#!/usr/bin/env python3
"""Copy a trained model from the recipe that trained it: MSLT has nothing to train on.

Example:
  python local/model.py conf/train_stream_paper.yaml --trained ../../covost2/st1 --part tokens
  python local/model.py conf/train_stream_paper.yaml --trained ../../covost2/st1 --part model

Copies the token list, or the experiment of the same name with its deployed model; the stages from 5
on then run here as there. Refuses an experiment that was trained with another config.
"""

import argparse
import contextlib
import shutil
import sys
from pathlib import Path

from espnet_ext.config.training import training_settings
from espnet_ext.errors import UserError, nearest, run_cli
from espnet_ext.experiment import Experiment
from espnet_ext.files import Stamp, atomic_path, read_json, weights_file
from espnet_ext.run_files import CARD_FILES


def copy_tokens(experiment: Experiment, trained: Path) -> None:
    """Copy the token list.

    Raises:
        UserError: the other recipe has none.
    """
    tokens, folder = trained / experiment.token_list, experiment.token_folder
    if not tokens.is_file():
        raise UserError(f"no {tokens}; run stages 1 to 3 of {trained}/run.sh")
    _copy(trained, [folder / path.name for path in sorted(tokens.parent.glob("[!.]*"))], folder)


def copy_model(experiment: Experiment, trained: Path) -> None:
    """Copy the experiment: record of the training, averaged checkpoint, deployed model.

    Raises:
        UserError: there is none, it was trained with another config, or not deployed so.
    """
    config, source = experiment.config, trained / experiment.folder
    remedy = f"run stages 1 to 5 of {trained}/run.sh with this config"
    if not (trained / experiment.train_record).is_file():
        known = [path.parent.name for path in (trained / "exp").glob("*/train.json")]
        raise UserError(f"no trained {nearest(config.tag, known)} in {trained}/exp; {remedy}")
    settings = read_json(trained / experiment.settings)["config"]
    before, now = training_settings(settings), training_settings(config.as_dict())
    # Options after -- may say for how long was trained.
    other = [k for k in {**before, **now} if k != "max_epoch" and before.get(k) != now.get(k)]
    if other:
        names = ", ".join(other)
        raise UserError(f"{source} was trained with other settings ({names}) than {config.path}")
    if not weights_file(trained / experiment.deployed).is_file():
        raise UserError(f"no {trained / experiment.deployed}/model.pth; {remedy}")
    with contextlib.chdir(trained):
        files = [experiment.averaged_model, experiment.averaged_link, experiment.espnet_config]
        records = (experiment.train_record, experiment.train_log)  # the log may be gone
        files += [path for path in records if path.is_file()]
        # Stage 8 writes a card of its own here.
        deployed = [p for p in experiment.deployed.rglob("*") if p.name not in CARD_FILES]
        files += [*(path for path in deployed if path.is_file()), experiment.deploy_stamp]
    _copy(trained, files, experiment.folder)


def _copy(trained: Path, files: list[Path], folder: Path) -> None:
    """Copy files of the other recipe to the same paths here, with their times."""
    names = [str(path.relative_to(folder)) for path in files]
    stamp = Stamp(folder / ".fetched.json", names, [trained / path for path in files])
    if stamp.is_current():
        print(f"{folder} is up to date")
        return
    for path in files:
        with atomic_path(path) as temporary:
            # The target of ESPnet's link tells of how many checkpoints it is the average.
            link = path.name.endswith(".ave.pth")
            shutil.copy2(trained / path, temporary, follow_symlinks=not link)
    stamp.write(files)
    print(f"{folder}: {len(files)} files from {trained}")


def copy(args: argparse.Namespace) -> None:
    """Copy what --part says.

    Raises:
        UserError: options for a training, a folder that is no recipe, or what the parts raise.
    """
    if args.espnet:
        raise UserError(f"nothing is trained here: give {args.espnet[0]} to {args.trained}/run.sh")
    experiment, trained = Experiment.load(args.config, variant=args.variant), Path(args.trained)
    if not (trained / "exp").is_dir():
        raise UserError(f"{trained}: no experiment in it; give --trained DIR, a recipe that ran")
    if args.part == "tokens":
        copy_tokens(experiment, trained)
    else:
        copy_model(experiment, trained)


def main() -> None:
    """Read the command line and copy."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="config, of the same name where it was trained")
    parser.add_argument("--trained", required=True, metavar="DIR", help="folder of that recipe")
    parser.add_argument("--part", choices=("tokens", "model"), required=True)
    parser.add_argument("--variant", help="variant of the model; default: the config's")
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:cut])
    args.espnet = words[cut + 1 :]
    sys.exit(run_cli("local/model.py", lambda: copy(args)))


if __name__ == "__main__":
    main()
