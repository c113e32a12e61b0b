#!/usr/bin/env python3
"""Prepare Switchboard (LDC97S62) with the Hub5'00, RT-02 and RT-03 tests of telephone speech.

Example:
  python local/data.py --corpus /data/LDC97S62 --eval2000 /data/LDC2002S09/hub5e_00 \\
      --eval2000_text /data/LDC2002T43 --rt03 /data/LDC2007S10

  --corpus         sw02001.sph and so on, anywhere below; two-channel mu-law SPHERE, which
                   libsndfile reads
  --transcripts    swb_ms98_transcriptions (openslr.org/5); default: in the corpus
  --eval2000       english/*.sph, english/hub5e_00.pem
  --eval2000_text  reference/hub5e00.english.000405.stm, reference/en20000405_hub5.glm
  --rt02           *cts*/*.stm, *.sph and one *.glm, anywhere below
  --rt03           data/{audio,references}/eval03/english/cts, data/trans_rules/en20030506.glm

Writes 16 kHz mono FLAC, one side of a call each, to data/audio; data/train and data/dev;
data/eval2000_{swbd,callhm}, data/rt02 and data/rt03_{swbd,fsh} as far as they are given; and
data/nist/<set>.{stm,glm} for NIST's scoring (stage 9). As in Kaldi's recipe dev is the first 4,000
utterances and of equal texts of train 300 stay; a speaker is the side of a call. Noises are not
transcribed here, so utterances of nothing else are left out.
"""

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from espnet_ext.data.corpora import nist
from espnet_ext.data.corpora.clips import Clip
from espnet_ext.data.corpora.stage import DataStage, main, print_left_out
from espnet_ext.errors import UserError
from espnet_ext.files import read_utf8, write_text

FOLDER = "the folder of LDC97S62 (Switchboard-1 Release 2)"
RELEASES = (2435, 2438)  # SPHERE files
DEV = 4000  # utterances
COPIES = 300  # of one text in train
EVAL2000_FILES = 40
HALVES = {"eval2000": {"sw": "swbd", "en": "callhm"}, "rt03": {"sw": "swbd", "fsh": "fsh"}}
_NAME = re.compile(r"sw(\d{4})([AB])-ms98-a-(\d{4})", re.IGNORECASE)
# Markings of the transcripts, in the order in which they are removed from a word.
_MARKS = (
    (re.compile(r"^(-?)\[laughter-(.+)\](-?)$"), r"\1\2\3"),  # spoken while laughing
    (re.compile(r"^\[(.+)/.+\](-?)$"), r"\1\2"),  # [it'n/isn't]: as spoken / as meant
    (re.compile(r"^-?\[[^][]+\](.+)$"), r"-\1"),  # -[an]y: the beginning was not spoken
    (re.compile(r"^(.+)\[[^][]+\]-?$"), r"\1-"),  # ab[solute]-: the end was not
    (re.compile(r"^([^][]+)\[.+\]$"), r"\1"),  # ex[specially]-/especially]: a slip of the corpus
    (re.compile(r"^\{(.+)\}$"), r"\1"),  # {yuppiedom}: coined
    (re.compile(r"([a-z])\[[^][]+\]([a-z])"), r"\1-\2"),  # ammu[n]it-
    (re.compile(r"_\d$"), ""),  # them_1: a variant of the pronunciation
)
_NOT_WORDS = re.compile(r"\[[^]]*\]|<[^>]*>")  # [silence], [noise], <b_aside>


def spoken(words: str) -> str:
    """Return the words of a transcript as they were spoken; fragments keep their hyphen."""
    found = []
    for word in words.lower().split():
        for pattern, kept in _MARKS:
            word = pattern.sub(kept, word)
        found += re.sub(r"[][{}<>]", "", _NOT_WORDS.sub(" ", word)).split()
    return " ".join(word for word in found if word.strip("-"))


def read_transcript(path: Path) -> Iterator[tuple[str, str, float, float, str]]:
    """Yield (call, side, start, end, text) of the lines of one side of a call.

    Times are rounded to hundredths of a second, as in Kaldi.

    Raises:
        UserError: a wrong line.
    """
    for number, line in enumerate(read_utf8(path).splitlines(), 1):
        if not line.strip():
            continue
        fields = line.split(None, 3)
        named = _NAME.fullmatch(fields[0])
        try:
            start, end = (int(100 * float(field) + 0.5) / 100 for field in fields[1:3])
        except (ValueError, OverflowError):
            named = None
        if named is None:
            raise UserError(
                f"{path}: line {number} is no 'sw<call><side>-ms98-a-<n> start end words'"
            )
        text = spoken(fields[3] if len(fields) == 4 else "")
        yield f"sw0{named[1]}", named[2].upper(), start, end, text


def read_switchboard(root: Path, transcripts: Path, counted: bool) -> list[Clip]:
    """Return the utterances of Switchboard, in the order of their ids.

    Raises:
        UserError: a transcript without audio, or a count that no release has.
    """
    audio = {name.lower(): path for name, path in nist.sphere_files(root).items()}
    calls = {name: path for name, path in audio.items() if re.fullmatch(r"sw0\d{4}", name)}
    if counted and len(calls) not in RELEASES:
        raise UserError(f"{root}: {len(calls)} files sw0NNNN.sph; a release has 2435 or 2438")
    found = []
    left_out: Counter[str] = Counter()
    for path in transcripts.glob("*/*/*-trans.text"):
        for call, side, start, end, text in read_transcript(path):
            if not text or not 0 <= start < end:
                left_out["lines without a word" if not text else "lines without a time"] += 1
                continue
            if call not in calls:
                raise UserError(f"{root}: no {call}.sph, of which {path} is a transcript")
            speaker = f"{call}-{side}"
            name = f"{speaker}_{round(start * 100):06d}-{round(end * 100):06d}"
            found.append(
                Clip(
                    id=name,
                    speaker=speaker,
                    source=calls[call],
                    start=start,
                    end=end,
                    channel="AB".index(side),
                    text=text,
                )
            )
    print_left_out(left_out)
    if not found:
        raise UserError(f"{transcripts}: no */*/*-trans.text with words in it")
    return sorted(found, key=lambda clip: clip.id)


def split(clips: list[Clip], dev: int = DEV) -> dict[str, list[Clip]]:
    """Return train and dev: dev is the first utterances; of equal texts of train COPIES stay."""
    seen: Counter[str] = Counter()
    train = []
    for clip in clips[dev:]:
        seen[clip.text] += 1
        if seen[clip.text] <= COPIES:
            train.append(clip)
    return {"train": train, "dev": clips[:dev]}


def evaluations(args: argparse.Namespace) -> dict[str, tuple[Path, list[Path], Path]]:
    """Return the given tests: folder of audio, stm files and glm of each.

    Raises:
        UserError: a folder or file is missing.
    """
    found = {}
    if (args.eval2000 is None) != (args.eval2000_text is None):
        raise UserError("--eval2000 (LDC2002S09) and --eval2000_text (LDC2002T43) go together")
    if args.eval2000 is not None:
        inner = Path(args.eval2000_text, "2000_hub5_eng_eval_tr")
        text = (inner if inner.is_dir() else Path(args.eval2000_text)) / "reference"
        stm, glm = text / "hub5e00.english.000405.stm", text / "en20000405_hub5.glm"
        found["eval2000"] = Path(args.eval2000, "english"), [stm], glm
    if args.rt02 is not None:
        root = Path(args.rt02)
        stms = [p for p in sorted(root.rglob("*.stm")) if "cts" in str(p.relative_to(root)).lower()]
        glms = sorted(root.rglob("*.glm"))
        if not stms or len(glms) != 1:
            raise UserError(
                f"{root}: {len(stms)} stm files with 'cts' in their path and {len(glms)} glm "
                "files; --rt02 is the folder of LDC2004S11 and needs some and one"
            )
        found["rt02"] = root, stms, glms[0]
    if args.rt03 is not None:
        root = Path(args.rt03, "data")
        stms = sorted((root / "references/eval03/english/cts").glob("*.stm"))
        glm = root / "trans_rules/en20030506.glm"
        if not stms:
            raise UserError(f"{root}: no references/eval03/english/cts/*.stm (LDC2007S10)")
        found["rt03"] = root / "audio/eval03/english/cts", stms, glm
    for folder, stms, glm in found.values():
        for path in (folder, *stms, glm):
            if not path.exists():
                raise UserError(f"no {path}")
    return found


def read_evaluation(
    stage: DataStage, name: str, folder: Path, stms: list[Path]
) -> dict[str, list[nist.Segment]]:
    """Return the segments of a test by its halves, which are reported separately.

    Raises:
        UserError: files that do not agree, or a recording of neither half.
    """
    segments = [segment for path in stms for segment in nist.read_stm(path)]
    if name == "eval2000":
        listed, pem = {s.id for s in segments}, folder / "hub5e_00.pem"
        for key in sorted(listed ^ nist.read_pem(pem))[:1]:
            raise UserError(f"{pem} and {stms[0]}: only one of them has the segment {key}")
        count = len(nist.sphere_files(folder))
        stage.expect({f"{folder}/*.sph": EVAL2000_FILES}, {f"{folder}/*.sph": count})
    if name not in HALVES:
        return {name: segments}
    found: dict[str, list[nist.Segment]] = {f"{name}_{h}": [] for h in HALVES[name].values()}
    for segment in segments:
        half = HALVES[name].get(segment.file.partition("_")[0].lower())
        if half is None:
            raise UserError(f"{stms[0]}: {segment.file} is none of {', '.join(HALVES[name])}_*")
        found[f"{name}_{half}"].append(segment)
    return found


def write_references(out: Path, name: str, lines: list[str], glm: Path) -> list[Path]:
    """Write the files of NIST's scoring of a set, <out>/nist/<name>.{stm,glm}."""
    files = [out / "nist" / f"{name}.{suffix}" for suffix in ("stm", "glm")]
    write_text(files[0], "".join(f"{line}\n" for line in lines))
    write_text(files[1], glm.read_text(encoding="latin-1"))
    return files


def prepare(stage: DataStage) -> None:
    """Make the data directories, unless they are up to date."""
    root, args = stage.corpus(), stage.args
    transcripts = Path(args.transcripts or root / "swb_ms98_transcriptions")
    if not transcripts.is_dir():
        raise UserError(f"no folder {transcripts}; give --transcripts DIR (openslr.org/5)")
    tests = evaluations(args)
    inputs = [*transcripts.glob("*/*/*-trans.text")]
    inputs += [path for _, stms, glm in tests.values() for path in (*stms, glm)]
    folders = [f"{name} {folder}" for name, (folder, *_) in tests.items()]
    if stage.is_current(sorted(inputs), [str(transcripts), *folders]):
        return
    found = split(read_switchboard(root, transcripts, stage.counted), args.dev)
    references: dict[str, tuple[list[str], Path]] = {}
    for name, (folder, stms, glm) in tests.items():
        audio = nist.sphere_files(folder)
        comments = dict.fromkeys(line for path in stms for line in nist.read_comments(path))
        for half, segments in read_evaluation(stage, name, folder, stms).items():
            found[half] = nist.clips(segments, audio)
            references[half] = [*comments, *(segment.line for segment in segments)], glm
    sets = stage.convert_sets(found)
    written = [
        path
        for name, given in references.items()
        for path in write_references(stage.out, name, *given)
    ]
    # Sets and calls are official: a text such as "yeah" may be in several.
    stage.write(sets, overlapping=sets, extra_files=written)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this recipe."""
    parser.add_argument("--transcripts", metavar="DIR", help="swb_ms98_transcriptions")
    parser.add_argument("--eval2000", metavar="DIR", help="LDC2002S09, the folder hub5e_00")
    parser.add_argument("--eval2000_text", metavar="DIR", help="LDC2002T43")
    parser.add_argument("--rt02", metavar="DIR", help="LDC2004S11")
    parser.add_argument("--rt03", metavar="DIR", help="LDC2007S10")
    # For tests on miniature corpora.
    parser.add_argument("--dev", type=int, default=DEV, help=argparse.SUPPRESS)


if __name__ == "__main__":
    main(__doc__, prepare, corpus=FOLDER, add_options=add_options)
