"""The tokens of a pretrained model: its tokenizer.json, read without running any of its code.

``tokenizers`` reads the file; transformers' AutoTokenizer may run code that a folder brings.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from espnet_ext.errors import UserError, one_line
from espnet_ext.files import read_json

TOKENIZER = "tokenizer.json"
HUB = "hub:"  # before the name of a model of transformers' hub
_BLANKS = "\u0120\u2581"  # byte-level BPE's and SentencePiece's
# Names such as <|en|>, <unk>; not times such as <|0.02|>, and nothing that fills a list.
_NAME = re.compile(r"<(?!\|unused)[^.]+>")
# Tokens of Whisper's, and the keys of config.json that hold their ids.
_NAMED = {"<|endoftext|>": "eos_token_id", "<|startoftranscript|>": "decoder_start_token_id"}


class Tokenizer:
    """A byte-level tokenizer of a pretrained model, as ESPnet uses tokenizers."""

    def __init__(self, folder: str | Path):
        """Read tokenizer.json in a folder.

        Raises:
            UserError: it is missing or damaged.
        """
        import tokenizers

        path = Path(folder) / TOKENIZER
        if not path.is_file():
            raise UserError(f"no {path}; run stage 3")
        try:
            self.model = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # of a type that comes from Rust
            raise UserError(f"{path}: no tokenizer can be read: {one_line(error)}") from None

    def tokens(self, text: str) -> list[str]:
        """Tokens of a text, whose first word begins as words inside of a text do."""
        return self.model.encode(f" {text}", add_special_tokens=False).tokens if text else []

    def text(self, tokens: Iterable[str]) -> str:
        """The text of tokens; special ones are left out."""
        found = self.model.decode(self.ids(tokens), skip_special_tokens=True)
        return " ".join(found.split())

    def ids(self, tokens: Iterable[str]) -> list[int]:
        """Ids of tokens; of those that only fill the list none."""
        found = (self.model.token_to_id(token) for token in tokens)
        return [number for number in found if number is not None]

    def names(self, ids: Iterable[int]) -> list[str]:
        """Tokens by their ids."""
        return [self.model.id_to_token(int(i)) or unused(int(i)) for i in ids]


def spelled_with(tokens: Iterable[str], letters: str) -> list[bool]:
    """For each token whether a text of these letters may need it.

    It may if it has only these letters after the mark of a blank, or is a single character, or
    names something (a language, the end) that is no time.
    """
    known = set(letters)
    return [
        len(token) == 1
        or known.issuperset(token[1:] if token[:1] in _BLANKS else token)
        or is_name(token)
        for token in tokens
    ]


def is_name(token: str) -> bool:
    """True for a token that names something: a language, a task, the end of a text."""
    return _NAME.fullmatch(token) is not None


def common_tokens(tokens: Iterable[str], used: Iterable[str]) -> list[str]:
    """Those of a model's tokens that texts use, or that name something (``spelled_with``)."""
    found = set(used)
    return [token for token in tokens if token in found or is_name(token)]


def read_common(path: Path) -> list[str]:
    """Read the tokens that stage 3 lists for a family's ``common``, one a line.

    Raises:
        UserError: there is no such file.
    """
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        raise UserError(f"nested: common: no file {path}; run stage 3") from None


def unused(number: int) -> str:
    """The name of an id that no token has, as of timestamps in some folders."""
    return f"<|unused{number}|>"


def is_unused(token: str) -> bool:
    """Whether this is a name of ``unused``."""
    return token.startswith("<|unused")


def source_files(source: str) -> tuple[Path, Path]:
    """Return tokenizer.json and config.json of a model: a folder or ``hub:NAME``.

    Raises:
        UserError: one is missing.
    """
    if not source.startswith(HUB):
        found = [Path(source) / name for name in (TOKENIZER, "config.json")]
        for path in found:
            if not path.is_file():
                raise UserError(
                    f"no {path}: token_type: hugging_face reads the tokens of a pretrained model; "
                    "run stage 2, or give the folder of a whole one"
                )
        return found[0], found[1]
    from transformers.utils import cached_file

    name = source.removeprefix(HUB)
    try:
        first, second = (cached_file(name, file) for file in (TOKENIZER, "config.json"))
    except OSError as error:
        raise UserError(f"{source}: {one_line(error)}") from None
    return Path(str(first)), Path(str(second))


def listed(tokenizer: Path, config: Path) -> list[str]:
    """Return a model's tokens in the order of its ids.

    Raises:
        UserError: the tokenizer is of another model.
    """
    found, sizes = Tokenizer(tokenizer.parent).model.get_vocab(), _read_object(config)
    rows = sizes.get("vocab_size")
    where = f"{tokenizer} and {config} are not of one model:"
    if not isinstance(rows, int) or max(found.values(), default=rows) >= rows:
        raise UserError(f"{where} {len(found)} tokens, vocab_size {rows}")
    for token, key in _NAMED.items():
        if token in found and sizes.get(key, found[token]) != found[token]:
            raise UserError(f"{where} {token} is {found[token]}, {key} {sizes[key]}")
    names: Sequence[str] = [unused(i) for i in range(rows)]
    by_id = {number: token for token, number in found.items()}
    return [by_id.get(i, name) for i, name in enumerate(names)]


def first_merges(tokenizer: Path, count: int) -> str:
    """Return a byte-level BPE's tokenizer.json with its first ``count`` merges only.

    Merges are in the order in which they were learnt, the most frequent first. Every text can
    still be written, rare words in more tokens. Tokens that no merge makes any more leave the
    vocabulary; the others keep their ids.

    Raises:
        UserError: the file is damaged or of another kind, or has fewer merges.
    """
    content = _read_object(tokenizer)
    model = content.get("model") or {}
    merges, vocabulary = model.get("merges"), model.get("vocab")
    if not isinstance(merges, list) or not isinstance(vocabulary, dict):
        raise UserError(f"{tokenizer}: recipe: merges needs a byte-level BPE")
    if count > len(merges):
        raise UserError(f"{tokenizer}: recipe: merges: {count}, but it has {len(merges)}")
    made = ["".join(m.split(" ") if isinstance(m, str) else m) for m in merges]
    dropped = set(made[count:]) - set(made[:count])
    model["merges"] = merges[:count]
    model["vocab"] = {k: v for k, v in vocabulary.items() if k not in dropped}
    # Else the library would number the special tokens from the size of the vocabulary on.
    special = content.get("added_tokens") or []
    model["vocab"] |= {token["content"]: token["id"] for token in special}
    return json.dumps(content, ensure_ascii=False)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except ValueError:
        raise UserError(f"{path}: not valid JSON") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys and values")
    return content
