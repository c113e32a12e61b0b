"""Where a config's pretrained model comes from: the first of its sources that is at hand.

A source is a folder (``/models/whisper-tiny.en``), a model of transformers' hub that its cache has
(``hub:openai/whisper-tiny.en``), or one that packages of the Python index carry
(``whisper_tiny.en``). ``@SHA256`` after a folder or a hub name is the digest that its
model.safetensors must have; packages are pinned.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from espnet_ext.data.fetch.whisper import MODELS, prepare
from espnet_ext.data.tokenizer import HUB
from espnet_ext.errors import UserError
from espnet_ext.files import sha256_file

_WEIGHTS = "model.safetensors"
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Source:
    """A source, read from a config.

    Attributes:
        name: a folder, ``hub:NAME``, or a model of packages.
        sha256: of model.safetensors; None: any.
    """

    name: str
    sha256: str | None = None

    @classmethod
    def parse(cls, word: str) -> Self:
        """Read ``NAME`` or ``NAME@SHA256``.

        Raises:
            UserError: no such packages, or no digest after ``@``.
        """
        name, at, digest = word.rpartition("@")
        if not at:
            name, digest = word, ""
        elif not _DIGEST.fullmatch(digest):
            raise UserError(f"{word}: after @ comes a SHA-256, 64 digits and letters a to f")
        found = cls(name, digest or None)
        if not (found.is_folder or name.startswith(HUB) or name in MODELS):
            known = ", ".join(MODELS)
            raise UserError(
                f"unknown source {name!r}; give a folder with a / in it, {HUB}NAME, or {known}"
            )
        return found

    @property
    def is_folder(self) -> bool:
        """True for a folder, whose name has a separator."""
        return "/" in self.name and not self.name.startswith(HUB)

    def at_hand(self) -> Path | None:
        """The folder of the model; None: it is not on this machine, or of packages."""
        if self.is_folder:
            return Path(self.name).resolve() if (Path(self.name) / _WEIGHTS).is_file() else None
        if not self.name.startswith(HUB):
            return None
        from transformers.utils import cached_file

        # Of what is not in the cache it says None, and looks nowhere else.
        path = cached_file(
            self.name.removeprefix(HUB),
            _WEIGHTS,
            local_files_only=True,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return None if path is None else Path(path).parent

    def check(self, folder: Path) -> None:
        """Compare the digest of a folder's weights.

        Raises:
            UserError: it is another.
        """
        if self.sha256 is not None and sha256_file(folder / _WEIGHTS) != self.sha256:
            raise UserError(f"{folder / _WEIGHTS} has another SHA-256 than {self.name}@... says")


def take_first(words: Sequence[str], out: Path) -> str:
    """Put the model of the first source that is at hand at ``out``; return a line that says which.

    A folder that the user put there stays. Folders and models of the hub become a link.

    Raises:
        UserError: no source is at hand, one is unknown, or weights have another digest.
    """
    sources = [Source.parse(word) for word in words]
    stamp = out.with_name(f".{out.name}.done.json")
    if (out / "config.json").is_file() and not stamp.exists():
        return f"{out}: {out.resolve() if out.is_symlink() else 'a folder that was there'}"
    for source in sources:
        folder = source.at_hand()
        if folder is not None:
            source.check(folder)
            if out.is_dir() and not out.is_symlink():
                raise UserError(f"{out} is of another source than {folder}; remove it")
            out.unlink(missing_ok=True)
            out.parent.mkdir(parents=True, exist_ok=True)
            out.symlink_to(folder)
            return f"{out}: {folder}"
        if source.name in MODELS:
            worked = prepare(MODELS[source.name], out, out.parent)
            return f"{out}: {'written' if worked else 'up to date'}"
    raise UserError(f"no model at hand for {out}: {', '.join(words)}; fetch one of them")
