"""Stage 4: collect statistics and train with ESPnet's trainer; a killed run goes on.

Writes exp/stats_<digest>/ (shared by configs with the same features and tokens) and
exp/<tag>/: ESPnet's config.yaml, checkpoints and train.log, calls.json (what made the run) and
train.json for the report.
Options after ``--`` are ESPnet's and win over the config. A trained run takes
more epochs (a larger --max_epoch); any other change needs another config.

Example:
  espnet-ext train conf/train_hrf_conformer_xs.yaml --ngpu 0 -- --max_epoch 20
"""

import argparse
import hashlib
import json
import logging
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import yaml

from espnet_ext.cli.features import ark_dir, ark_width
from espnet_ext.cli.footprint import vocabulary
from espnet_ext.cli.tokens import target_text, token_dir
from espnet_ext.config.training import READ_LATER, Config, load_config
from espnet_ext.data.features import ark_definition
from espnet_ext.data.kaldi_dir import audio_inputs
from espnet_ext.errors import UserError, at_least
from espnet_ext.files import Stamp, content_key, lock, write_json, write_text

# Keys of ESPnet that decide the features and the lengths of the texts.
_STATISTICS = (
    *("frontend", "frontend_conf", "input_size", "train_dtype"),
    *("speech_volume_normalize", "rir_scp", "noise_scp", "cleaner", "g2p"),
    *("non_linguistic_symbols", "use_preprocessor", "preprocessor", "preprocessor_conf"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("config", help="training config")
    parser.add_argument("--tag", help="name of the experiment; default: from the config's name")
    parser.add_argument(
        "--ngpu", type=int, choices=(0, 1), default=0, help="GPUs; several: untested"
    )
    parser.add_argument(
        "--threads",
        type=at_least(1),
        default=min(4, len(os.sched_getaffinity(0))),
        help="CPU threads when there is no GPU",
    )
    parser.set_defaults(espnet=[])  # what stands after --
    parser.usage = "%(prog)s [-h] [--tag TAG] [--ngpu N] [--threads N] config [-- OPTIONS]"


def run(args: argparse.Namespace) -> None:
    """Collect statistics if they are missing, then train or go on training."""
    config = load_config(args.config, args.tag)
    data = data_options(config)
    files = data_files(config)
    settings = {"config": decisive(config.as_dict()), "espnet": args.espnet}
    stamp = Stamp(config.exp / ".train.done.json", settings, files)
    if stamp.is_current():
        print(f"train: {config.exp} is up to date")
        return
    # From here on the options after -- are part of the config: checked, trained and recorded.
    config, trainer = checked_trainer(config, args)
    contents = {str(f): content_key(f) for f in files}
    refuse_other_run(config, {"config": decisive(config.as_dict()), "data": contents})
    command = espnet_options(config, data, args)
    log_to(config.exp / "train.log")
    start_mimic(config, args.ngpu)
    statistics = collect_statistics(config, command, data)
    command += train_options(config, statistics)
    options = trainer.parse_options(command, config.recipe.task)
    trainer.repair(config.exp, options)
    calls = this_call(config, args, trainer, options)
    before = trainer.history(config.exp)[0]
    trainer.run_task(command, config.exp / "train.log", config.recipe.task)
    averaged, made = averaged_model(config), config.exp / "train.json"
    epochs = trainer.history(config.exp)[0]
    for epoch in set(range(before + 1, epochs + 1)) - set(calls.own["epochs"]):
        calls.add(epoch, measured=False)  # by processes that ESPnet started
    # A run from before calls were kept has its record.
    if calls.path.exists() or not made.exists():
        write_json(made, record(config, calls, trainer, options))
    stamp.write([averaged, config.exp / "config.yaml", made])
    print(f"train: averaged model is {averaged}")


def checked_trainer(config: Config, args: argparse.Namespace) -> tuple[Config, Any]:
    """Import ESPnet and set up our trainer; nothing is written yet.

    Returns:
        The config with ESPnet's options in it, and the module ``tasks.training``.

    Raises:
        UserError: what would stop the training later: a wrong config, data or option, no GPU.
    """
    from espnet_ext.bridge.muted import quiet
    from espnet_ext.data.inputs import check_inputs

    with quiet():
        import torch

        from espnet_ext.bridge import trainer
        from espnet_ext.bridge.config_keys import refuse_problems, refuse_unbuildable
        from espnet_ext.bridge.footprint import sampling_rate
        from espnet_ext.bridge.start_model import refuse_other_start

        refuse_problems(config)
        trainer.refuse_own_options(args.espnet, args.ngpu, config.recipe.task)
        config = trainer.with_options(config, args.espnet)
        refuse_unbuildable(config)
        refuse_other_start(config, start_models(config), vocabulary(config))
    if args.ngpu > torch.cuda.device_count():
        seen = torch.cuda.device_count() or "no"
        raise UserError(f"--ngpu {args.ngpu}: torch sees {seen} GPU here; --ngpu 0 is the CPU")
    for name in (config.recipe.train_set, config.recipe.dev_set):
        check_inputs(Path("data") / name, audio_scp(config, name), sampling_rate(config))
    trainer.Trainer.cpu_dtype = None
    if args.ngpu == 0:
        torch.set_num_threads(args.threads)
        trainer.Trainer.cpu_dtype = trainer.supported_cpu_dtype(config.recipe.cpu_dtype)
        print(f"train: {args.threads} threads, {trainer.Trainer.cpu_dtype or 'float32'}")
    return config, trainer


def data_files(config: Config) -> list[Path]:
    """Files whose content decides the training, besides the config."""
    return [*corpus_files(config), *start_models(config), *config.pretrained()]


def corpus_files(config: Config) -> list[Path]:
    """Those that hold what is learnt from; the statistics depend on nothing else."""
    tokens = token_dir(config)
    sets = (config.recipe.train_set, config.recipe.dev_set)
    files = [audio_scp(config, name) for name in sets]
    files += [Path("data") / s / config.recipe.target_file for s in sets]
    files += [file for name in sets for file in audio_inputs(Path("data") / name)]
    if config.recipe.features == "ark":
        files += ark_definition(config).files
    return [*files, tokens / "tokens.txt"]


def start_models(config: Config) -> list[Path]:
    """Whole models that the training starts from, of ``init_param``.

    Raises:
        UserError: one is missing.
    """
    found = []
    for entry in config.espnet.get("init_param") or []:
        path = Path(str(entry).partition(":")[0])
        if not path.is_file():
            raise UserError(f"init_param: no {path}; train that config first")
        if path.as_posix() == str(entry):  # else only a part of it is loaded, as ESPnet does
            found.append(path)
    return found


def target(config: Config) -> str:
    """What is learnt, as ESPnet names it."""
    return "label" if config.recipe.task == "cls" else "text"


def audio_scp(config: Config, name: str) -> Path:
    """The list of waves or feature matrices of a data set."""
    if config.recipe.features == "ark":
        return ark_dir(config, name) / "feats.scp"
    return Path("data") / name / "wav.scp"


def data_options(config: Config) -> dict[str, list[str]]:
    """ESPnet's data options by role (train, valid).

    Raises:
        UserError: the output of an earlier stage is missing.
    """
    kind = "kaldi_ark" if config.recipe.features == "ark" else "sound"
    roles = {"train": config.recipe.train_set, "valid": config.recipe.dev_set}
    stages = {"wav.scp": 1, "feats.scp": 2, "tokens.txt": 3}
    for path in data_files(config):
        if path.name in stages and not path.is_file():
            raise UserError(f"no {path}; run stage {stages[path.name]}")
    texts = {role: target_text(config, name) for role, name in roles.items()}
    return {
        role: [
            f"{audio_scp(config, name)},speech,{kind}",
            f"{texts[role]},{target(config)},text",
        ]
        for role, name in roles.items()
    }


def refuse_other_run(config: Config, settings: dict) -> None:
    """Refuse to go on with a checkpoint of another config or other data; record these otherwise.

    More epochs are no other run: they are added.
    """
    path = config.exp / "resolved.json"
    if (config.exp / "checkpoint.pth").exists() and path.exists():
        stored = json.loads(path.read_text(encoding="utf-8"))
        before, now = decisive(stored["config"]), json.loads(json.dumps(settings["config"]))
        way_out = f"give the config another name or remove {config.exp}"
        other = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if other == ["max_epoch"] and _epochs(before) < _epochs(now):
            other = []
        if other:
            names = ", ".join(other)
            raise UserError(f"{config.exp} holds a run of other settings ({names}); {way_out}")
        for name, content in settings["data"].items():
            if stored.get("data", {}).get(name, content) != content:
                raise UserError(f"{config.exp} was trained before {name} changed; {way_out}")
    write_json(path, settings)


def _epochs(config: dict[str, Any]) -> int:
    """What the config says, or ESPnet's default."""
    return config.get("max_epoch", 40)


# Keys of ``recipe:`` that configs did not always have, and what they are without.
_ADDED = {"task": "asr", "target": None, "classes": 2}


def decisive(config: dict[str, Any]) -> dict[str, Any]:
    """A resolved config without what later stages read, which may change after a training.

    Keys that configs did not always have are left out at their default: older runs stay current.
    """
    recipe = {
        k: v
        for k, v in config["recipe"].items()
        if k not in READ_LATER and (k, v) not in _ADDED.items()
    }
    return {**config, "recipe": recipe}


def espnet_options(config: Config, data: dict[str, list[str]], args: argparse.Namespace) -> list:
    """Options that statistics and training share; also writes exp/<tag>/espnet.yaml."""
    espnet = dict(config.espnet)
    if config.recipe.features == "ark":
        espnet["input_size"] = ark_width(config)
        espnet.pop("frontend"), espnet.pop("frontend_conf", None)
    path = config.exp / "espnet.yaml"
    write_text(path, yaml.safe_dump(espnet, sort_keys=False))
    tokens = token_dir(config)
    command = ["--config", str(path), "--ngpu", str(args.ngpu)]
    command += ["--token_list", str(tokens / "tokens.txt")]
    if (tokens / "bpe.model").exists() and config.espnet.get("token_type") != "char":
        command += ["--bpemodel", str(tokens / "bpe.model")]
    for role, triples in data.items():
        for triple in triples:
            command += [f"--{role}_data_path_and_name_and_type", triple]
    return command


def collect_statistics(config: Config, command: list[str], data: dict) -> Path:
    """Run ESPnet's collect_stats once for these features and tokens; return its folder."""
    from espnet_ext.bridge import trainer

    settings = {
        "data": data,
        "read": {key: config.espnet[key] for key in _STATISTICS if key in config.espnet},
        "tokens": str(token_dir(config)),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    folder = Path("exp") / f"stats_{digest}"
    # Two configs of one recipe may train at once and share this folder.
    with lock(folder / ".lock"):
        stamp = Stamp(folder / ".done.json", settings, corpus_files(config))
        if not stamp.is_current():
            print(f"train: collecting statistics into {folder}")
            # Statistics do not depend on batches of the training's size, nor on its model.
            own = ["--collect_stats", "true", "--output_dir", str(folder), "--normalize", "none"]
            own += ["--batch_type", "unsorted", "--batch_size", "32", "--ngpu", "0"]
            trainer.run_task([*command, *own], config.exp / "train.log", config.recipe.task)
            stamp.write(folder / role / "feats_stats.npz" for role in ("train", "valid"))
    return folder


def train_options(config: Config, statistics: Path) -> list[str]:
    """Options of the training proper."""
    options = ["--output_dir", str(config.exp), "--resume", "true"]
    for role in ("train", "valid"):
        for kind in ("speech_shape", f"{target(config)}_shape"):
            options += [f"--{role}_shape_file", str(statistics / role / kind)]
    if config.espnet.get("normalize") == "global_mvn":
        options += ["--normalize_conf", f"stats_file={statistics}/train/feats_stats.npz"]
    options += ["--keep_nbest_models", str(config.recipe.average)]
    return options


def start_mimic(config: Config, ngpu: int) -> None:
    """Train step one if the config has one, and tell ESPnet where its result is."""
    if config.recipe.mimic is None:
        return
    from espnet_ext.analysis import mimic_training

    path = mimic_training.step_one(config, "cuda" if ngpu else "cpu")
    written = config.exp / "espnet.yaml"
    espnet = yaml.safe_load(written.read_text(encoding="utf-8"))
    espnet["encoder_conf"]["mimic"]["path"] = str(path)
    write_text(written, yaml.safe_dump(espnet, sort_keys=False))


def averaged_model(config: Config) -> Path:
    """The average of the training's ``recipe: average`` best checkpoints.

    Of a training with fewer epochs than that ESPnet takes the best checkpoint alone.
    """
    found = config.exp / f"{config.recipe.average_by}.ave.pth"
    if not found.exists():
        raise UserError(f"no {found}; run stage 4")
    # ESPnet's link says how many; exp/ itself may be a link, to another disk.
    return config.exp / os.readlink(found) if found.is_symlink() else found


def log_to(path: Path) -> None:
    """Send ESPnet's log to a file whole, and its progress to the terminal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    root = logging.getLogger()
    root.handlers.clear()
    whole = logging.FileHandler(path)
    form = f"[{os.uname().nodename.split('.')[0]}] %(asctime)s (%(module)s:%(lineno)d) "
    whole.setFormatter(logging.Formatter(form + "%(levelname)s: %(message)s"))
    progress = logging.StreamHandler(sys.stdout)
    progress.setFormatter(logging.Formatter("%(asctime)s %(message).110s", "%H:%M:%S"))
    progress.addFilter(lambda r: r.module in ("trainer", "reporter") and "epoch" in r.getMessage())
    root.addHandler(whole)
    root.addHandler(progress)
    root.setLevel(logging.INFO)
    # Warnings are for the log; and a disk that is full is told once, by who writes a result.
    logging.captureWarnings(True)
    logging.raiseExceptions = False


def this_call(config: Config, args: argparse.Namespace, trainer: Any, options: Any) -> Any:
    """Have every epoch of this call noted in calls.json; return its ``tasks.record.Calls``."""
    from espnet_ext.bridge.run_record import Calls
    from espnet_ext.results.schema import NOT_MEASURED

    calls = Calls(
        config.exp / "calls.json",
        new_run=trainer.history(config.exp)[0] == 0,
        command=shlex.join(["espnet-ext", *sys.argv[1:]]),
        threads=args.threads if args.ngpu == 0 else NOT_MEASURED,
        device=f"{args.ngpu} GPU" if args.ngpu else "cpu",
        dtype=trainer.dtype_of(options),
    )
    # The memory of processes that read data for this one is not in its own.
    alone = options.num_workers == 0
    trainer.Trainer.on_epoch = lambda epoch: calls.add(epoch, measured=alone)
    return calls


def record(config: Config, calls: Any, trainer: Any, options: Any) -> dict[str, Any]:
    """What the report needs of the training: train.json."""
    epochs, seconds = trainer.history(config.exp)
    return {
        "seconds": round(seconds, 1),
        "epochs": epochs,
        "seed": options.seed,
        "average": trainer.averaged_epochs(config.exp, options, averaged_model(config)),
        **calls.summary(epochs),
        "config": config.as_dict(),
    }
