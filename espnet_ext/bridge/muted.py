"""Mutes what ESPnet prints while it is imported and builds models."""

import contextlib
import gc
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Drop standard error, warnings and log lines below ERROR; exceptions pass.

    ESPnet reports absent optional packages and default choices that way, several lines for
    every model. Import ESPnet inside the block: nothing is collected as garbage there, which
    would cost a quarter of the time.
    """
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    collects = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
        if collects:
            gc.enable()
