"""ESPnet's trainer, made safe to kill, in one process or several, in bfloat16 on a CPU if asked."""

import contextlib
import errno
import functools
import logging
import os
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from espnet2.samplers.abs_sampler import AbsSampler
from espnet2.tasks import abs_task
from espnet2.tasks.abs_task import AbsTask
from espnet2.train.trainer import Trainer as ESPnetTrainer
from espnet2.train.trainer import autocast_args

from espnet_ext.bridge.checkpoint import save
from espnet_ext.bridge.registry import TASKS, install
from espnet_ext.bridge.training.resume import save_untrained
from espnet_ext.bridge.training.step_checkpoint import Parts, StepCheckpoints
from espnet_ext.encoders.frozen_cache import FrozenCache
from espnet_ext.encoders.pretrained.encoder import caching
from espnet_ext.errors import UserError, one_line

install()

type OnEpoch = Callable[[int], None]  # called with the number of each finished epoch
# Of the process: those of a pool that trains a grid keep it from one training to the next.
_FROZEN_OUTPUTS = FrozenCache()


@dataclass(frozen=True)
class Settings:
    """Training settings that ESPnet's options lack.

    Attributes:
        cpu_dtype: type of forward passes on a CPU; None: that of the weights.
        minutes: between two checkpoints within an epoch; 0: none but at SIGTERM and SIGUSR1.
        on_epoch: called after each epoch, in every process.
        on_step_checkpoint: called after each checkpoint within an epoch.
        sync_batchnorm: several GPUs have the batch statistics of all of them.
    """

    cpu_dtype: torch.dtype | None = None
    minutes: float = 0.0
    on_epoch: OnEpoch | None = None
    on_step_checkpoint: Callable[[], None] | None = None
    sync_batchnorm: bool = True


_PLAIN = Settings()


def _trainer(settings: Settings) -> type[ESPnetTrainer]:
    """ESPnet's trainer with these settings; a class, since ESPnet never makes an object of it."""

    class Trainer(ESPnetTrainer):
        """ESPnet's trainer: a cache, autocast on a CPU, and checkpoints within an epoch."""

        checkpoints: StepCheckpoints

        @classmethod
        def run(cls, model: torch.nn.Module, **options: Any) -> None:
            """Train as ESPnet does; the outputs of a frozen encoder are cached.

            Without any epoch the average of the best models is the model as it is. Statistics of
            batches are those of all processes where torch can do so, which is on GPUs.
            """
            asked, rank = options["trainer_options"], options["distributed_option"].dist_rank
            folder = Path(asked.output_dir)
            cls.checkpoints = StepCheckpoints(folder, settings.minutes, settings.on_step_checkpoint)
            several = options["distributed_option"].distributed and asked.ngpu > 0
            if several and settings.sync_batchnorm:
                model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
            with caching(model, _FROZEN_OUTPUTS), cls.checkpoints:
                super().run(model=model, **options)
            cls.checkpoints.remove()
            if asked.max_epoch == 0 and not rank:
                save_untrained(model, asked)

        @classmethod
        def train_one_epoch(cls, model: torch.nn.Module, **options: Any) -> bool:
            """As ESPnet's, the forward pass under autocast, from the last checkpoint on.

            Raises:
                UserError: no step of the epoch had finite gradients.
                StoppedError: a signal asked for it, and the state is saved.
            """
            rank = options["distributed_option"].dist_rank or 0
            if rank:  # ESPnet gives all processes one seed: they would drop the same units
                torch.manual_seed(torch.initial_seed() + 1_000_003 * rank)
            scaler = options["scaler"] = _for_type(options["scaler"])
            names = ("optimizers", "schedulers", "reporter")
            parts = Parts(model, scaler=scaler, **{name: options[name] for name in names})
            state = cls.checkpoints.restored(parts)
            every = options["options"].accum_grad
            options["iterator"] = _Left(options["iterator"], cls.checkpoints, parts, state, every)
            with _autocast_forward(model, settings.cpu_dtype):
                all_invalid = super().train_one_epoch(model=model, **options)
            if all_invalid and state is None:
                # ESPnet would stop and average what there is, as if the training were over.
                raise UserError("no step had finite gradients; use a lower lr (optim_conf)")
            return all_invalid and state is None

        @classmethod
        def validate_one_epoch(cls, model: torch.nn.Module, **options: Any) -> None:
            """As ESPnet's; then the epoch is whole, but for its checkpoint."""
            super().validate_one_epoch(model=model, **options)
            if settings.on_epoch is not None:
                settings.on_epoch(options["reporter"].get_epoch())

    return Trainer


class _Left:
    """The batches of an epoch that are left to do; it has the length of all."""

    def __init__(self, iterator: Any, checkpoints: StepCheckpoints, *rest: Any):
        self.iterator, self.checkpoints, self.rest = iterator, checkpoints, rest

    def __len__(self) -> int:
        return len(self.iterator)

    def __iter__(self) -> Iterator[Any]:
        return self.checkpoints.steps(self.iterator, *self.rest)


class NoScaling(torch.cuda.amp.GradScaler):
    """For bfloat16, whose range is that of float32: leaves the loss as it is.

    ESPnet relies on a scaler to leave out steps with gradients that are not finite.
    """

    def __init__(self) -> None:
        super().__init__(enabled=False)

    def step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        """As the optimizer's, if all gradients are finite."""
        given = [p.grad for group in optimizer.param_groups for p in group["params"]]
        if all(bool(torch.isfinite(grad).all()) for grad in given if grad is not None):
            return super().step(optimizer, *args, **kwargs)
        return None


def _for_type(scaler: Any) -> Any:
    """The scaler that the type of autocast needs."""
    if scaler is not None and autocast_args.get("dtype") == torch.bfloat16:
        return NoScaling()
    return scaler


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


@contextlib.contextmanager
def balanced_batches() -> Iterator[None]:
    """While active, each process gets short and long utterances of every batch.

    ESPnet sorts a batch by length and gives process r of n its utterances r, r + n, r + 2 n, ...,
    so that the first would always have the longer ones. Here every second n of them are reversed.
    """
    plain = abs_task.build_batch_sampler

    @functools.wraps(plain)
    def build(*args: Any, **options: Any) -> Any:
        world = int(os.environ.get("WORLD_SIZE", 1))
        if world == 1:
            return plain(*args, **options)
        return _Balanced(plain(*args, **options), world)

    abs_task.build_batch_sampler = build
    try:
        yield
    finally:
        abs_task.build_batch_sampler = plain


class _Balanced(AbsSampler):
    """The batches of a sampler, each dealt out to ``world`` processes by length."""

    def __init__(self, sampler: AbsSampler, world: int):
        self.sampler, self.world = sampler, world

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        return (in_turns(batch, self.world) for batch in self.sampler)

    def __repr__(self) -> str:
        return f"{self.sampler!r}, dealt out to {self.world} processes"


def in_turns(batch: Sequence[str], world: int) -> tuple[str, ...]:
    """Reverse every second group of ``world`` members, but for one that is not full."""
    groups = [tuple(batch[start : start + world]) for start in range(0, len(batch), world)]
    turned = (g[::-1] if n % 2 and len(g) == world else g for n, g in enumerate(groups))
    return tuple(member for group in turned for member in group)


def run_task(
    command: Sequence[str],
    log: Path,
    task: str = "asr",
    settings: Settings = _PLAIN,
) -> None:
    """Run a task of ESPnet in this process, which may be one of several of a training.

    Standard error, and the stack trace of a failure, go to the log.

    Args:
        command: ESPnet's options.
        log: a file.
        task: name of the task, of ``bridge.registry.TASKS``.
        settings: of a training.

    Raises:
        UserError: ESPnet stopped with an error, or a signal stopped it.
    """
    trainer = {"trainer": _trainer(settings)}
    trained: type[AbsTask] = type(TASKS[task].__name__, (TASKS[task],), trainer)
    try:
        with (
            atomic_checkpoints(),
            balanced_batches(),
            open(log, "a") as stream,
            contextlib.redirect_stderr(stream),
        ):
            trained.main(cmd=list(command))
    except UserError as error:
        if not str(error).startswith("Caught "):
            raise
        # torch puts the stack trace of a process that reads data into its message.
        said = str(error).splitlines()[-1]
        raise UserError(said.removeprefix(f"{UserError.__module__}.UserError: ")) from None
    except torch.OutOfMemoryError:
        raise UserError("the GPU has not enough memory; use a smaller batch_bins") from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        logging.exception("ESPnet stopped")
        if "find_unused_parameters" in str(error):
            raise UserError(
                "some weights have no gradient in a step; with several processes the config needs "
                "unused_parameters: true"
            ) from None
        raise UserError(f"ESPnet stopped: {one_line(error)}; the whole story is in {log}") from None
