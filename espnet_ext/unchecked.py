"""Leaves out ESPnet's checks of argument types at run time.

typeguard compiles every function of ESPnet once more when it is imported: a quarter of the seconds
that any command takes to start. Values of a config are compared with the types of ESPnet's
arguments before (``bridge.config_check``). Import this before ESPnet; packages that use it do.
"""

from typing import Any

import typeguard


def _typechecked(target: Any = None, **_: Any) -> Any:
    return target if target is not None else lambda function: function


typeguard.typechecked = _typechecked
