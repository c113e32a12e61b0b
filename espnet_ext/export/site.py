"""A page that transcribes in the browser with exported models: a folder for any static server."""

import http.server
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from espnet_ext.data.fetch import npm
from espnet_ext.errors import UserError
from espnet_ext.export.onnx_decoder import require_unchanged
from espnet_ext.files import atomic_path, write_json

_WEB = Path(__file__).with_name("web")
_LIST = "models.json"


def write_site(models: Sequence[Path], site: Path, package: Path | None = None) -> None:
    """Write the folder, whole or not at all.

    Args:
        models: exported folders; the page's slider has them by their bytes.
        site: must not hold anything else.
        package: of ONNX Runtime; None: npm fetches it to the folder beside the site.

    Raises:
        UserError: no exported model, two of one name, a folder of something else, or what
            ``npm.fetch`` raises.
    """
    if site.exists() and not (site / _LIST).is_file():
        raise UserError(f"{site} exists and is no demo: choose another folder")
    names = [model.resolve().name for model in models]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"two models are named {min(twice)}: rename the folder of one")
    for model in models:
        require_unchanged(model)
    package = npm.fetch(site.absolute().parent, package)
    with atomic_path(site) as temporary:
        shutil.copytree(_WEB, temporary)
        npm.unpack(package, temporary)
        listed = []
        for name, model in zip(names, models, strict=True):
            shutil.copytree(model, temporary / "models" / name)
            size = sum(path.stat().st_size for path in model.glob("*.onnx"))
            listed.append({"name": name, "folder": f"models/{name}", "bytes": size})
        write_json(temporary / _LIST, sorted(listed, key=lambda one: one["bytes"]))


def server(site: Path, port: int) -> http.server.ThreadingHTTPServer:
    """Return a server of the folder for this machine alone; 0 is any free port.

    Raises:
        UserError: the port is taken.
    """
    try:
        return http.server.ThreadingHTTPServer(
            ("127.0.0.1", port), partial(_Handler, directory=str(site))
        )
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no port"
        raise UserError(f"--port {port}: {reason}; choose another") from None


_KINDS = {  # whatever this machine's tables say
    **http.server.SimpleHTTPRequestHandler.extensions_map,
    ".mjs": "text/javascript",
    ".wasm": "application/wasm",
    ".json": "application/json",
}


class _Handler(http.server.SimpleHTTPRequestHandler):
    extensions_map = _KINDS

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""
