"""ESPnet's trainer, made safe to kill, with forward passes in bfloat16 on a CPU when asked."""

import contextlib
import copy
import dataclasses
import errno
import functools
import json
import logging
import os
import re
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
from espnet2.tasks.abs_task import AbsTask
from espnet2.tasks.asr import ASRTask as ESPnetASRTask
from espnet2.train.reporter import Reporter
from espnet2.train.trainer import Trainer as ESPnetTrainer
from espnet2.train.trainer import autocast_args

from espnet_ext.bridge.checkpoint import build, read_config, save
from espnet_ext.bridge.muted import quiet
from espnet_ext.bridge.registry import CLSTask as PlainCLSTask
from espnet_ext.bridge.registry import install
from espnet_ext.config.recipe_errors import NO_TRAINING, READ_ELSEWHERE, SET_BY_TRAIN
from espnet_ext.config.training import Config
from espnet_ext.encoders.frozen_cache import remembering
from espnet_ext.errors import UserError, nearest
from espnet_ext.formats.state_dict import compare_state

install()


class Trainer(ESPnetTrainer):
    """ESPnet's trainer; its settings are the class's, since ESPnet never instantiates it."""

    cpu_dtype: torch.dtype | None = None
    on_epoch: Callable[[int], None] | None = None  # called with the number of each epoch

    @classmethod
    def train_one_epoch(cls, model: torch.nn.Module, *args: Any, **kwargs: Any) -> bool:
        """As ESPnet's, the forward pass under autocast if ``cpu_dtype`` is set.

        Raises:
            UserError: no step of the epoch had finite gradients.
        """
        with _autocast_forward(model, cls.cpu_dtype):
            all_invalid = super().train_one_epoch(model, *args, **kwargs)
        if all_invalid:
            # ESPnet would stop and average what there is, as if the training were over.
            raise UserError("no step had finite gradients; take a lower lr (optim_conf)")
        return all_invalid

    @classmethod
    def validate_one_epoch(cls, model: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        """As ESPnet's; then the epoch is whole, but for its checkpoint."""
        super().validate_one_epoch(model, *args, **kwargs)
        if cls.on_epoch is not None:
            cls.on_epoch(kwargs["reporter"].get_epoch())


class ASRTask(ESPnetASRTask):
    """ESPnet's ASR task with the trainer above."""

    trainer = Trainer


class CLSTask(PlainCLSTask):
    """The classification task with the trainer above."""

    trainer = Trainer


_TRAINED: dict[str, type[AbsTask]] = {"asr": ASRTask, "st": ASRTask, "cls": CLSTask}


def supported_cpu_dtype(name: str) -> torch.dtype | None:
    """Return bfloat16 if asked for and computed natively here, else None (float32)."""
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if name == "bfloat16" and native else None


def dtype_of(options: Namespace) -> str:
    """The type that forward passes compute in, and that of the weights if it is another."""
    chosen = Trainer.cpu_dtype
    if options.ngpu > 0 and options.use_amp:
        chosen = autocast_args.get("dtype", torch.float16)
    weights = options.train_dtype
    name = weights if chosen is None else str(chosen).removeprefix("torch.")
    return name if name == weights else f"{name} autocast, {weights} weights"


@contextlib.contextmanager
def _autocast_forward(model: torch.nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    if dtype is None:
        yield
        return
    plain = model.forward
    # Only the forward pass: the backward pass then uses the types that it chose.
    model.forward = torch.autocast("cpu", dtype)(plain)  # type: ignore[method-assign]
    try:
        yield
    finally:
        model.forward = plain  # type: ignore[method-assign]


@contextlib.contextmanager
def atomic_checkpoints() -> Iterator[None]:
    """While active, ``torch.save`` to a path writes the file whole or not at all.

    ESPnet calls ``torch.save(state, path)`` directly: a kill while it writes would lose the
    run (espnet issue 5407).
    """
    plain = torch.save

    @functools.wraps(plain)
    def to_path_or_stream(obj: Any, f: Any, **options: Any) -> None:
        to_path = isinstance(f, str | os.PathLike)
        (save if to_path else plain)(obj, f, **options)

    torch.save = to_path_or_stream
    try:
        yield
    finally:
        torch.save = plain


def repair(exp: Path, options: Namespace) -> None:
    """Bring a killed run to the state after its last whole epoch.

    ESPnet writes checkpoint.pth first; a kill behind that leaves out what it does next: the
    epoch's model, without which the average fails, the links, and the removal of old models.

    Args:
        exp: folder of the run.
        options: of its training, as ``parse_options`` gives them.

    Raises:
        UserError: checkpoint.pth is damaged or of another architecture.
    """
    checkpoint = exp / "checkpoint.pth"
    if not checkpoint.exists():
        return
    state = load_training(checkpoint)
    try:
        with quiet():
            compare_state(build(read_config(exp / "config.yaml")), state["model"], checkpoint)
    except UserError as error:
        raise UserError(f"{error}; remove {exp} to train again") from None
    reporter = Reporter()
    reporter.load_state_dict(state["reporter"])
    epoch = reporter.get_epoch()
    if not (exp / f"{epoch}epoch.pth").exists():
        save(state["model"], exp / f"{epoch}epoch.pth")
    _link(exp / "latest.pth", epoch)
    kept = {epoch}
    for phase, key, mode in options.best_model_criterion:
        if reporter.has(phase, key):
            _link(exp / f"{phase}.{key}.best.pth", reporter.get_best_epoch(phase, key, mode))
            kept.update(reporter.sort_epochs(phase, key, mode)[: max(options.keep_nbest_models)])
    for model in exp.glob("*epoch.pth"):
        number = model.name.removesuffix("epoch.pth")
        if number.isdecimal() and int(number) not in kept:
            model.unlink()


def _link(path: Path, epoch: int) -> None:
    """Point ``path`` at the model of ``epoch``."""
    target = f"{epoch}epoch.pth"
    if not path.is_symlink() or os.readlink(path) != target:
        path.unlink(missing_ok=True)
        path.symlink_to(target)


def load_training(checkpoint: Path) -> dict[str, Any]:
    """Read checkpoint.pth: model, reporter, optimizers, schedulers.

    Raises:
        UserError: it is damaged.
    """
    way_out = f"remove {checkpoint.parent} to train again"
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a damaged file
        raise UserError(f"{checkpoint} is damaged ({one_line(error)}); {way_out}") from None
    if not isinstance(state, dict) or not {"model", "reporter"} <= state.keys():
        raise UserError(f"{checkpoint} is no checkpoint of a training; {way_out}")
    return state


def history(exp: Path) -> tuple[int, float]:
    """Return the whole epochs of a run and the seconds of their training and validation."""
    if not (exp / "checkpoint.pth").exists():
        return 0, 0.0
    state = load_training(exp / "checkpoint.pth")
    epochs = state["reporter"]["stats"]
    phases = [phase for epoch in epochs.values() for phase in epoch.values()]
    return len(epochs), sum(phase["time"]["__timedelta_seconds__"] for phase in phases)


def averaged_epochs(exp: Path, options: Namespace, average: Path) -> dict[str, Any]:
    """Return the name of ``average`` and the epochs that ESPnet put into it, the best first.

    ESPnet averages the n best; of a training of fewer epochs than n it takes the best alone.
    """
    found = re.fullmatch(r"(\w+)\.(\w+)\.ave_(\d+)best\.pth", average.name)
    modes = {(phase, key): mode for phase, key, mode in options.best_model_criterion}
    if not found or (found[1], found[2]) not in modes:
        raise UserError(f"{average} is no average that ESPnet writes; remove it and run stage 4")
    reporter = Reporter()
    reporter.load_state_dict(load_training(exp / "checkpoint.pth")["reporter"])
    ranked = reporter.sort_epochs(found[1], found[2], modes[found[1], found[2]])
    return {"file": average.name, "epochs": ranked[: int(found[3])]}


def parse_options(
    words: list[str], task: str = "asr", start: Namespace | None = None, **defaults: Any
) -> Namespace:
    """Parse options as ESPnet's trainer will.

    Args:
        words: the options.
        task: name of the task, of ``registry.TASKS``.
        start: attributes that are set already; their defaults are not filled in.
        defaults: instead of ESPnet's own.

    Raises:
        UserError: an unknown option or a value that it refuses; ESPnet's own parser would
            print two hundred lines.
    """
    parser = _TRAINED[task].get_parser()
    parser.set_defaults(**defaults)

    def refuse(message: str) -> NoReturn:
        choice = re.fullmatch(r"(.*: invalid choice: )'(.*)' \(choose from (.*)\)", message)
        if choice:
            message = choice[1] + nearest(choice[2], re.findall(r"\w+", choice[3]))
        raise UserError(f"ESPnet's trainer: {message}")

    parser.error = refuse
    known = {flag: a for a in parser._actions for flag in a.option_strings}
    args, unknown = parser.parse_known_args(words, start)
    if unknown:
        name = unknown[0].partition("=")[0]
        refuse(f"unknown option {nearest(name, known if name.startswith('--') else ())}")
    return args


def refuse_own_options(words: list[str], ngpu: int, task: str = "asr") -> None:
    """Raise UserError if options for ESPnet are wrong, or must not stand after ``--``."""
    reasons = dict.fromkeys(NO_TRAINING, "ESPnet would not train the config")
    reasons |= {name: f"training takes it from {source}" for name, source in SET_BY_TRAIN.items()}
    reasons |= {name: f"{why}; put it into the config" for name, why in READ_ELSEWHERE.items()}
    if "-h" in words or "--help" in words:  # argparse would print, and end with success
        raise UserError(f"--help is not for after --: {reasons['help']}")
    args = parse_options(words, task, Namespace(**dict.fromkeys(reasons)))
    for name, why in reasons.items():
        given = getattr(args, name)
        if name == "ngpu" and given not in (None, ngpu):
            raise UserError("give --ngpu before --, or as run.sh --ngpu N")
        if name != "ngpu" and given is not None:
            raise UserError(f"--{name} is not for after --: {why}")


def with_options(config: Config, words: list[str]) -> Config:
    """Return the config with ESPnet's options ``words`` in it, as if they stood there.

    Raises:
        UserError: an unknown option or a value that ESPnet's trainer refuses.
    """
    if not words:
        return config
    # ESPnet's parser changes mappings in place.
    task = config.recipe.task
    plain = vars(parse_options([], task, **copy.deepcopy(config.espnet)))
    changed = vars(parse_options(words, task, **copy.deepcopy(config.espnet)))
    over = {key: value for key, value in changed.items() if value != plain[key]}
    over.pop("ngpu", None)  # the same as before --, or refused
    # What JSON and YAML hold: lists for tuples.
    return dataclasses.replace(config, espnet={**config.espnet, **json.loads(json.dumps(over))})


def one_line(error: BaseException) -> str:
    """The type of an exception and the first line of what it says."""
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {said[0][:200]}" if said else type(error).__name__


def run_task(command: list[str], log: Path, task: str = "asr") -> None:
    """Run a task of ESPnet in this process with ``command`` as its options.

    What it writes to standard error goes to ``log``, and so does the stack trace if it fails.

    Raises:
        UserError: ESPnet stopped with an error.
    """
    try:
        with (
            atomic_checkpoints(),
            remembering(),
            open(log, "a") as stream,
            contextlib.redirect_stderr(stream),
        ):
            _TRAINED[task].main(cmd=command)
    except UserError:
        raise
    except torch.OutOfMemoryError:
        raise UserError("the GPU has not enough memory; take a smaller batch_bins") from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        logging.exception("ESPnet stopped")
        raise UserError(f"ESPnet stopped: {one_line(error)}; the whole story is in {log}") from None
