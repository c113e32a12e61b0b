"""ESPnet's trainer, made safe to kill, with forward passes in bfloat16 on a CPU when asked."""

import contextlib
import errno
import functools
import logging
import os
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from espnet2.tasks.abs_task import AbsTask
from espnet2.train.trainer import Trainer as ESPnetTrainer
from espnet2.train.trainer import autocast_args

from espnet_ext.bridge.checkpoint import save
from espnet_ext.bridge.registry import TASKS, install
from espnet_ext.bridge.resume import save_untrained
from espnet_ext.encoders.frozen_cache import FrozenCache
from espnet_ext.encoders.pretrained.encoder import caching
from espnet_ext.errors import UserError, one_line

install()

type OnEpoch = Callable[[int], None]  # called with the number of each finished epoch
_FROZEN_OUTPUTS = FrozenCache()  # shared by the trainings of a process, such as those of a grid


def _trainer(cpu_dtype: torch.dtype | None, on_epoch: OnEpoch | None) -> type[ESPnetTrainer]:
    """ESPnet's trainer with these settings; a class, since ESPnet never makes an object of it."""

    class Trainer(ESPnetTrainer):
        """ESPnet's trainer: a cache, autocast on a CPU, and a call after each epoch."""

        @classmethod
        def run(cls, model: torch.nn.Module, **options: Any) -> None:
            """Train as ESPnet does; the outputs of a frozen encoder are cached.

            Without any epoch the average of the best models is the model as it is.
            """
            with caching(model, _FROZEN_OUTPUTS):
                super().run(model=model, **options)
            if options["trainer_options"].max_epoch == 0:
                save_untrained(model, options["trainer_options"])

        @classmethod
        def train_one_epoch(cls, model: torch.nn.Module, *args: Any, **kwargs: Any) -> bool:
            """As ESPnet's, the forward pass under autocast.

            Raises:
                UserError: no step of the epoch had finite gradients.
            """
            with _autocast_forward(model, cpu_dtype):
                all_invalid = super().train_one_epoch(model, *args, **kwargs)
            if all_invalid:
                # ESPnet would stop and average what there is, as if the training were over.
                raise UserError("no step had finite gradients; take a lower lr (optim_conf)")
            return all_invalid

        @classmethod
        def validate_one_epoch(cls, model: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
            """As ESPnet's; then the epoch is whole, but for its checkpoint."""
            super().validate_one_epoch(model, *args, **kwargs)
            if on_epoch is not None:
                on_epoch(kwargs["reporter"].get_epoch())

    return Trainer


def supported_cpu_dtype(name: str) -> torch.dtype | None:
    """Return bfloat16 if asked for and computed natively here, else None (float32)."""
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if name == "bfloat16" and native else None


def dtype_of(options: Namespace, cpu_dtype: torch.dtype | None) -> str:
    """The type that forward passes compute in, and that of the weights if it differs."""
    chosen = cpu_dtype
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


def run_task(
    command: Sequence[str],
    log: Path,
    task: str = "asr",
    cpu_dtype: torch.dtype | None = None,
    on_epoch: OnEpoch | None = None,
) -> None:
    """Run a task of ESPnet in this process.

    Standard error, and the stack trace of a failure, go to the log.

    Args:
        command: ESPnet's options.
        log: a file.
        task: name of the task, of ``registry.TASKS``.
        cpu_dtype: type of forward passes on a CPU; None: that of the weights.
        on_epoch: called after each epoch.

    Raises:
        UserError: ESPnet stopped with an error.
    """
    trainer = {"trainer": _trainer(cpu_dtype, on_epoch)}
    trained: type[AbsTask] = type(TASKS[task].__name__, (TASKS[task],), trainer)
    try:
        with (
            atomic_checkpoints(),
            open(log, "a") as stream,
            contextlib.redirect_stderr(stream),
        ):
            trained.main(cmd=list(command))
    except UserError:
        raise
    except torch.OutOfMemoryError:
        raise UserError("the GPU has not enough memory; take a smaller batch_bins") from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        logging.exception("ESPnet stopped")
        raise UserError(f"ESPnet stopped: {one_line(error)}; the whole story is in {log}") from None
