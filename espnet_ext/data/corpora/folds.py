"""Folds of cross-validation: data/<split>-<fold>/{train,dev,test}, listed in data/folds/<split>."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from espnet_ext.data.kaldi_dir import AUDIO_DIGEST, Utterance, write_data_dir
from espnet_ext.errors import UserError, check_name, nearest
from espnet_ext.files import write_text

type Folds = Mapping[str, Mapping[str, Sequence[Utterance]]]  # fold -> part -> utterances


def write_folds(
    out: Path,
    split: str,
    folds: Folds,
    disjoint: str = "speaker",
    digests: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write the data directories of the folds of a split, and their list.

    Args:
        out: folder of the data directories.
        split: name of the way of splitting.
        folds: utterances by the name of the fold and the part.
        disjoint: what no two parts of a fold may share: speaker or text.
        digests: of the audio of every utterance, for stamps to notice other audio.

    Returns:
        The files written.

    Raises:
        UserError: two parts of a fold share a speaker (or text), an utterance is tested in
            two folds, or what ``write_data_dir`` refuses.
    """
    written, tested = [], set()
    for fold, parts in folds.items():
        owner: dict[str, str] = {}
        for part, utterances in parts.items():
            for key in {getattr(u, disjoint) for u in utterances}:
                if owner.setdefault(key, part) != part:
                    raise UserError(f"{split}-{fold}: {key} is in {owner[key]} and {part}")
            folder = out / f"{split}-{fold}" / part
            written += write_data_dir(folder, utterances)
            if digests is not None:
                rows = (f"{name} {digests[name]}\n" for name in sorted(u.id for u in utterances))
                write_text(folder / AUDIO_DIGEST, "".join(rows))
                written.append(folder / AUDIO_DIGEST)
        for utterance in parts["test"]:
            if utterance.id in tested:
                raise UserError(f"{split}-{fold}: {utterance.id} is tested in another fold too")
            tested.add(utterance.id)
    listed = out / "folds" / split
    for old in _read_list(listed):
        if old.removeprefix(f"{split}-") not in folds:
            shutil.rmtree(out / old, ignore_errors=True)
    write_text(listed, "".join(f"{split}-{fold}\n" for fold in folds))
    print(f"{listed}: {len(folds)} folds, {len(tested)} utterances tested")
    return [*written, listed]


def read_folds(data: Path, split: str) -> list[str]:
    """Return the names of the folds of a split; <fold>/train, <fold>/dev, <fold>/test are sets.

    Raises:
        UserError: no such split.
    """
    found = _read_list(data / "folds" / split)
    if not found:
        known = [path.name for path in (data / "folds").glob("[!.]*")]
        raise UserError(f"no folds {nearest(split, known)} in {data}/folds; run stage 1")
    return [check_name(fold, f"{data}/folds/{split}:") for fold in found]


def _read_list(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split() if path.is_file() else []
