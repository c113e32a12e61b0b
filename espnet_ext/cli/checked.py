"""The config of a verb, refused if ``recipe:`` holds what no stage understands; no torch."""

from pathlib import Path

from espnet_ext.config.recipe_errors import recipe_problems
from espnet_ext.config.training import Config, load_config
from espnet_ext.errors import UserError


def checked_config(path: str | Path, tag: str | None = None) -> Config:
    """Read a training config.

    Raises:
        UserError: what ``load_config`` raises, or a wrong value in ``recipe:``.
    """
    config = load_config(path, tag)
    for problem in recipe_problems(config):
        raise UserError(f"{config.path}: {problem}")
    return config
