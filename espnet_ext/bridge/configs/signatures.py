"""Reads the signatures of ESPnet's options and constructors, and keeps them as JSON.

A config's keys can then be checked without importing ESPnet (``bridge.configs.keys``).
"""

import contextlib
import hashlib
import inspect
import os
import types
import typing
from collections import abc
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import espnet_ext
from espnet_ext.bridge.configs.keys import (
    Argument,
    Constructor,
    Option,
    Section,
    Signatures,
    TaskSignatures,
)
from espnet_ext.errors import UserError
from espnet_ext.files import content_key, write_text
from espnet_ext.validation import read_model

# Arguments that ESPnet gives to constructors itself.
_GIVEN = {
    "self",
    *("input_size", "vocab_size", "encoder_output_size", "odim", "stats_file"),
    *("token_list", "frontend", "specaug", "normalize", "preencoder", "encoder", "postencoder"),
    *("decoder", "ctc", "joint_network", "params", "optimizer", "model"),
}
_GIVEN_TO_JOINER = {"self", "output_size", "encoder_size", "decoder_size", "activation_type"}
_GIVEN_TO_PREPROCESSOR = {"train", "token_type", "bpemodel", "text_cleaner", "g2p_type"}
# Parts of ESPnet's models whose class a config chooses.
_CHOSEN = (
    *("frontend", "specaug", "normalize", "model", "preencoder", "encoder", "postencoder"),
    *("decoder", "preprocessor"),
)
_SIMPLE = {bool: "bool", int: "int", float: "float", str: "str", None: "None", type(None): "None"}


def cached_signatures() -> Signatures:
    """The signatures, from the user's cache where it is of this package and these versions.

    Only where it is not, ESPnet is imported.
    """
    path = _cache_path()
    try:
        return read_model(Signatures, path, "remove it")
    except (OSError, UserError):
        from espnet_ext.bridge.muted import muted

        with muted():
            found = collect()
        with contextlib.suppress(OSError):  # a home that cannot be written only costs time
            write_text(path, found.model_dump_json())
        return found


def _cache_path() -> Path:
    root = Path(espnet_ext.__file__).parent
    sources = sorted(
        path
        for room in ("bridge", "config", "encoders", "methods", "models")
        for path in (root / room).rglob("*.py")
    )
    digest = hashlib.sha256(f"{version('espnet')} {version('torch')}".encode())
    for path in sources:
        digest.update(content_key(path).encode())
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "espnet-ext" / f"signatures-{digest.hexdigest()[:16]}.json"


def collect() -> Signatures:
    """Read the signatures off ESPnet, with our classes in its choices."""
    from espnet_ext.bridge.registry import TASKS, compressed_names, install
    from espnet_ext.methods.registry import METHODS

    install()
    return Signatures(
        tasks={
            name: TaskSignatures(options=_options(task), sections=dict(_sections(name, task)))
            for name, task in TASKS.items()
        },
        compressed={name: list(pair) for name, pair in compressed_names().items()},
        methods={name: list(method.options.model_fields) for name, method in METHODS.items()},
    )


def _options(task: Any) -> dict[str, Option]:
    from espnet2.utils.nested_dict_action import NestedDictAction

    found = {}
    for action in task.get_parser()._actions:
        if action.dest in ("help", "config", "print_config"):
            continue
        kind = getattr(action.type, "__name__", None)
        choices = None if action.choices is None else list(action.choices)
        found[action.dest] = Option(
            converter="lower" if kind == "<lambda>" else kind,
            nested=isinstance(action, NestedDictAction),
            many=action.nargs is not None or isinstance(action.default, list),
            optional=str(kind).endswith("_or_none") or action.default is None or kind == "<lambda>",
            choices=None if choices is None else [c for c in choices if c is not None],
            none_is_a_choice=choices is not None and None in choices,
        )
    return found


def _sections(name: str, task: Any) -> Iterator[tuple[str, Section]]:
    from espnet2.asr.ctc import CTC
    from espnet2.layers.create_adapter import create_adapter_fn_table
    from espnet2.optimizers.optim_groups import add_optimizer_hooks
    from espnet2.tasks.abs_task import optim_classes, scheduler_classes

    choices = {choice.name: choice for choice in task.class_choices_list}
    for chosen in _CHOSEN:
        if chosen in choices:
            choice = choices[chosen]
            yield f"{chosen}_conf", _section(chosen, choice.default, choice.classes)
    yield "optim_conf", _section("optim", "adadelta", optim_classes)
    yield "scheduler_conf", _section("scheduler", None, scheduler_classes)
    yield "adapter_conf", _section("adapter", "lora", create_adapter_fn_table)
    hooks = {"exclude_weight_decay": _constructor(add_optimizer_hooks)}
    yield "exclude_weight_decay_conf", Section(constructors=hooks)
    if name == "cls":
        return
    yield "ctc_conf", Section(constructors={"CTC": _constructor(CTC)})
    joiner = {"the joint network": _joint_network()}
    yield "joint_net_conf", Section(decoder="transducer", constructors=joiner)


def _section(choice: str, default: str | None, classes: dict[str, Any]) -> Section:
    given = _GIVEN_TO_PREPROCESSOR if choice == "preprocessor" else set()
    constructors = {name: _constructor(c, given) for name, c in classes.items()}
    return Section(choice=choice, default=str(default).lower(), constructors=constructors)


def _constructor(owner: Any, given: set[str] = frozenset()) -> Constructor:  # type: ignore[assignment]
    """The arguments of a class or function; those of base classes too where ** passes them on."""
    chain = list(_reached(owner))
    found: dict[str, inspect.Parameter] = {}
    for one in chain:
        for name, parameter in inspect.signature(one).parameters.items():
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                found.setdefault(name, parameter)
    arguments = {n: _argument(p) for n, p in found.items() if n not in _GIVEN | given}
    return Constructor(arguments=arguments, open=_passes_on(chain[-1]))


def _joint_network() -> Constructor:
    """The joiner's arguments, with those of the activation that its ** go to."""
    from espnet2.asr_transducer.activation import get_activation
    from espnet2.tasks import asr

    arguments = {
        name: _argument(parameter)
        for owner in (asr.JointNetwork.__init__, get_activation)
        for name, parameter in inspect.signature(owner).parameters.items()
        if parameter.kind != parameter.VAR_KEYWORD and name not in _GIVEN_TO_JOINER
    }
    return Constructor(arguments=arguments, open=False)


def _reached(owner: Any) -> Iterator[Any]:
    """``owner``, then the base classes that its ``**`` reaches."""
    for one in inspect.getmro(owner)[:-1] if inspect.isclass(owner) else [owner]:
        yield one
        if not _passes_on(one):
            return


def _passes_on(owner: Any) -> bool:
    return any(p.kind == p.VAR_KEYWORD for p in inspect.signature(owner).parameters.values())


def _argument(parameter: inspect.Parameter) -> Argument:
    default = parameter.default
    kind = "bool" if isinstance(default, bool) else None
    if kind is None and isinstance(default, int | float):
        kind = "number"
    described = _described(parameter.annotation)
    text = "" if described is None else inspect.formatannotation(parameter.annotation)
    return Argument(type=described, text=text, default=kind)


def _described(annotation: Any) -> Any:
    """``Argument.type`` of an annotation; None if YAML cannot hold such a value."""
    if annotation in _SIMPLE:
        return _SIMPLE[annotation]
    origin = typing.get_origin(annotation)
    kinds = {
        typing.Union: "union",
        types.UnionType: "union",
        list: "list",
        abc.Sequence: "sequence",
    }
    parts = [_described(part) for part in typing.get_args(annotation)]
    return None if origin not in kinds or None in parts else [kinds[origin], *parts]
