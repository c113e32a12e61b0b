"""Options of ESPnet's trainer that a user gives after ``--``: parsed and put into the config."""

import copy
import dataclasses
import json
import re
from argparse import Namespace
from collections.abc import Sequence
from typing import Any, NoReturn

from espnet_ext.bridge.registry import TASKS, install
from espnet_ext.config.reserved_options import NO_TRAINING, READ_ELSEWHERE, SET_BY_TRAIN
from espnet_ext.config.training import Config
from espnet_ext.errors import UserError, nearest

install()


def parse_options(
    words: Sequence[str], task: str = "asr", start: Namespace | None = None, **defaults: Any
) -> Namespace:
    """Parse options as ESPnet's trainer will.

    Args:
        words: the options.
        task: name of the task, of ``bridge.registry.TASKS``.
        start: attributes that are set already; their defaults are not filled in.
        defaults: values that replace ESPnet's defaults.

    Raises:
        UserError: an unknown option or a value that is refused; ESPnet's parser would print two
            hundred lines.
    """
    parser = TASKS[task].get_parser()
    parser.set_defaults(**defaults)

    def refuse(message: str) -> NoReturn:
        choice = re.fullmatch(r"(.*: invalid choice: )'(.*)' \(choose from (.*)\)", message)
        if choice:
            message = choice[1] + nearest(choice[2], re.findall(r"\w+", choice[3]))
        raise UserError(f"ESPnet's trainer: {message}")

    parser.error = refuse
    known = {flag: a for a in parser._actions for flag in a.option_strings}
    args, unknown = parser.parse_known_args(list(words), start)
    if unknown:
        name = unknown[0].partition("=")[0]
        refuse(f"unknown option {nearest(name, known if name.startswith('--') else ())}")
    return args


def refuse_reserved_options(words: Sequence[str], ngpu: int, task: str = "asr") -> None:
    """Raise UserError if options for ESPnet are wrong, or are not allowed after ``--``."""
    reasons = dict.fromkeys(NO_TRAINING, "ESPnet would not train the config")
    reasons |= {name: f"training gets it from {source}" for name, source in SET_BY_TRAIN.items()}
    reasons |= {name: f"{why}; put it into the config" for name, why in READ_ELSEWHERE.items()}
    if "-h" in words or "--help" in words:  # argparse would print, and end with success
        raise UserError(f"--help is not allowed after --: {reasons['help']}")
    args = parse_options(words, task, Namespace(**dict.fromkeys(reasons)))
    for name, why in reasons.items():
        given = getattr(args, name)
        if name == "ngpu" and given not in (None, ngpu):
            raise UserError("give --ngpu before --, or as run.sh --ngpu N")
        if name != "ngpu" and given is not None:
            raise UserError(f"--{name} is not allowed after --: {why}")


def with_options(config: Config, words: Sequence[str]) -> Config:
    """Return the config with ESPnet's options ``words`` in it, as if the file had them.

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
