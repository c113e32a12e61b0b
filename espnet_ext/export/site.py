"""A page that transcribes in the browser with exported models: a folder for any static server."""

import http.server
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from espnet_ext.data.fetch import npm
from espnet_ext.errors import UserError
from espnet_ext.export.runtime.decoder import require_unchanged
from espnet_ext.export.runtime.family_weights import assemble
from espnet_ext.files import atomic_path, bytes_in, write_json

_WEB = Path(__file__).with_name("web")
_LIST = "models.json"


def write_site(models: Sequence[Path], site: Path, package: Path | None = None) -> None:
    """Write the folder, whole or not at all.

    Args:
        models: exported folders; the page's slider has them, and of a family each member, by
            their bytes.
        site: must not hold anything else.
        package: of ONNX Runtime; None: npm fetches it to a folder next to the site.

    Raises:
        UserError: no exported model, one of another layout, two of one name, a folder of something
            else, or what ``npm.fetch`` raises.
    """
    _refuse_other_folder(site, models)
    names = [model.resolve().name for model in models]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"two models are named {min(twice)}: rename the folder of one")
    settings = [require_unchanged(model) for model in models]
    for model, known in zip(models, settings, strict=True):
        if known["kind"] == "whisper_offset":
            raise UserError(f"{model}: the page has another layout: export it without --layout")
    package = npm.fetch(site.absolute().parent, package)
    with atomic_path(site) as temporary:
        _copy(_WEB, temporary)
        npm.unpack(package, temporary)
        listed = []
        for name, model, known in zip(names, models, settings, strict=True):
            copy = temporary / "models" / name
            _copy(model, copy)
            one = {"name": name, "folder": f"models/{name}"}
            for member, its in known.get("members", {}).items():
                assemble(copy, member)  # a browser reads computed weights as a file
                named = {"name": f"{name}, {member}", "member": member, "bytes": its["bytes"]}
                listed.append(one | named)
            if "members" not in known:
                listed.append(one | {"bytes": bytes_in(model)})
        write_json(temporary / _LIST, sorted(listed, key=lambda one: one["bytes"]))


def _refuse_other_folder(site: Path, models: Sequence[Path]) -> None:
    """Refuse a folder that is no demo of ours alone, and one that lies in a model."""
    if any(model.resolve() in (site.resolve(), *site.resolve().parents) for model in models):
        raise UserError(f"{site} lies in a model's folder: choose another folder")
    if not site.exists():
        return
    known = {"models", *npm.MEMBERS, *(path.name for path in _WEB.iterdir())}
    found = {path.name for path in site.iterdir()} if site.is_dir() else set()
    if _LIST not in found:
        raise UserError(f"{site} exists and is no demo: choose another folder")
    if others := found - known - {_LIST}:
        raise UserError(f"{site} holds {min(others)}, which no demo has: choose another folder")


def _copy(folder: Path, target: Path) -> None:
    """Copy the files of a folder that has no folders."""
    target.mkdir(parents=True)
    for path in folder.iterdir():
        if path.is_file():
            shutil.copyfile(path, target / path.name)


def server(site: Path, port: int) -> http.server.ThreadingHTTPServer:
    """Return a server of a folder, which may be written later, for this machine alone.

    Port 0 is any free one.

    Raises:
        UserError: the port is in use.
    """
    try:
        return _Server(("127.0.0.1", port), partial(_Handler, directory=str(site)))
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no port"
        raise UserError(f"--port {port}: {reason}; choose another") from None


_KINDS = {  # whatever this machine's tables say
    **http.server.SimpleHTTPRequestHandler.extensions_map,
    ".js": "text/javascript",
    ".wasm": "application/wasm",
    ".json": "application/json",
}


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *of: object) -> None:
        """Say nothing: a browser that loads another model ends what it was reading."""


class _Handler(http.server.SimpleHTTPRequestHandler):
    extensions_map = _KINDS

    def end_headers(self) -> None:
        """Keep browsers from mixing files of an older demo with new ones."""
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""
