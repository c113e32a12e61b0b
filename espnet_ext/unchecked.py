"""Leaves out ESPnet's checks of argument types at run time.

typeguard compiles each function that has such a check once more when it is imported: a quarter of
the seconds that ESPnet needs. Values of a config are compared with the types of ESPnet's arguments
before (``bridge.configs.check``). Other packages keep their checks.
"""

import sys
from typing import Any


class _BeforeESPnet:
    """Among the finders of modules: does its work when ESPnet is imported, and finds nothing.

    Commands that need no ESPnet do not wait for typeguard.
    """

    done = False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name in ("espnet", "espnet2") and not self.done:
            self.done = True
            _leave_out()


def _leave_out() -> None:
    """Let typeguard leave functions and classes of ESPnet as they are."""
    import typeguard

    original = typeguard.typechecked

    def typechecked(target: Any = None, **options: Any) -> Any:
        if target is None:
            return lambda function: typechecked(function, **options)
        module = getattr(target, "__module__", None) or ""
        return target if module.startswith("espnet") else original(target, **options)

    typeguard.typechecked = typechecked


sys.meta_path.insert(0, _BeforeESPnet())  # type: ignore[arg-type]
