"""The data directories of a corpus, written and checked together."""

from collections.abc import Container, Iterable, Mapping
from pathlib import Path

from espnet_ext.data.kaldi_dir import (
    AUDIO_DIGEST,
    WHOLE,
    Checked,
    Utterance,
    check_no_text_overlap,
    digest_audio,
    read_data_dir,
    write_data_dir,
)
from espnet_ext.files import write_text


def write_sets(
    out: str | Path,
    sets: Mapping[str, Iterable[Utterance]],
    jobs: int = 1,
    overlapping: Container[str] = (),
    checked: Checked | None = None,
) -> list[Path]:
    """Write, check and describe the data directories of a corpus under ``out``.

    Args:
        out: their folder; relative paths of audio start from the current folder.
        sets: utterances by the name of their set; ``all`` is the whole corpus.
        jobs: processes that decode the audio for the check.
        overlapping: names of sets that may hold texts of ``train``.
        checked: audio that need not be decoded.

    Returns:
        The files written.

    Raises:
        UserError: what ``write_data_dir`` and ``digest_audio`` raise, or a transcript or
            translation of ``train`` is in another set.
    """
    out = Path(out)
    files = []
    known = dict(checked or {})  # an utterance may be in several sets
    for name, utterances in sets.items():
        files += [*write_data_dir(out / name, utterances), out / name / AUDIO_DIGEST]
        written = read_data_dir(out / name)
        digests = digest_audio(out / name, written, jobs=jobs, checked=known)
        rows = list(zip(written, digests, strict=True))
        known |= {u.audio: (digest, u.seconds) for u, digest in rows}
        write_text(out / name / AUDIO_DIGEST, "".join(f"{u.id} {d}\n" for u, d in rows))
        minutes = sum(item.seconds for item in written) / 60
        speakers = len({item.speaker for item in written})
        print(f"{out / name}: {len(written)} utterances, {minutes:.1f} min, {speakers} speakers")
    if "train" in sets:
        others = [n for n in sets if n not in ("train", WHOLE) and n not in overlapping]
        check_no_text_overlap(out / "train", [out / name for name in others])
    return files
