"""Leaves out ESPnet's checks of argument types at run time.

typeguard compiles each function that has such a check once more when it is imported: a quarter of
the seconds that ESPnet takes. Values of a config are compared with the types of ESPnet's arguments
before (``bridge.config_check``). It must be imported before ESPnet: ``bridge``, ``models`` and
``encoders`` do, and others come to ESPnet through them. Other packages keep their checks.
"""

from typing import Any

import typeguard

_typechecked = typeguard.typechecked


def _unchecked(target: Any = None, **options: Any) -> Any:
    """As ``typeguard.typechecked``, but functions and classes of ESPnet stay as they are."""
    if target is None:
        return lambda function: _unchecked(function, **options)
    module = getattr(target, "__module__", None) or ""
    return target if module.startswith("espnet") else _typechecked(target, **options)


typeguard.typechecked = _unchecked
