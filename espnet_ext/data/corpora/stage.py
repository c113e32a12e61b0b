"""Stage 1 of a recipe: what every ``local/data.py`` shares.

    def prepare(stage: DataStage) -> None:
        root = stage.corpus("labels.csv")
        if stage.is_current([root / "labels.csv"]):
            return
        sets = read(root)  # clips by set
        stage.expect({"train": 100}, {name: len(clips) for name, clips in sets.items()})
        stage.write(stage.convert_sets(sets))

    if __name__ == "__main__":
        main(__doc__, prepare, corpus="the folder that holds labels.csv")

docs/new_corpus.md is the guide.
"""

import argparse
import sys
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from espnet_ext.data import kaldi_dir
from espnet_ext.data.corpora import checked_audio, clips
from espnet_ext.data.corpora.clips import Clip
from espnet_ext.data.corpora.folds import Folds, write_folds
from espnet_ext.data.corpora.sets import write_sets
from espnet_ext.data.fetch import debian
from espnet_ext.data.kaldi_dir import Checked, Utterance
from espnet_ext.data.parts import Part, part
from espnet_ext.errors import UserError, at_least, run_cli
from espnet_ext.files import Stamp, lock

_PART = "convert and check the Kth of N parts of the audio; a call without it does the rest"


class PartDone(Exception):  # noqa: N818 (no error)
    """The part of a call is done; what is left needs all parts."""


class DataStage:
    """The options of the stage, the corpus it reads and the data directories it writes.

    Attributes:
        args: the parsed options.
        out: folder of the data directories.
        audio: folder of the converted audio.
        downloads: folder of fetched packages, and of what is unpacked from them.
        jobs: number of processes.
        part: of the audio, which this call converts and checks; None: all, and the rest.
        counted: False in tests, whose miniature corpora have other counts.
    """

    def __init__(
        self, args: argparse.Namespace, corpus: str, packages: Sequence[debian.Package] = ()
    ):
        self.args = args
        self.out, self.downloads = Path(args.out), Path(getattr(args, "downloads", "downloads"))
        self.audio = self.out / "audio"
        self.jobs: int = args.nj
        self.part: Part | None = args.part
        self._corpus, self._held = corpus, ExitStack()
        given = args.sha256.split() if packages and args.sha256 else [p.sha256 for p in packages]
        self._packages = {
            p: replace(p, sha256=digest) for p, digest in zip(packages, given, strict=True)
        }
        self.counted = not args.sha256 if packages else not args.uncounted

    def corpus(self, *needed: str) -> Path:
        """Return the folder --corpus.

        Raises:
            UserError: it was not given, or one of the paths ``needed`` is not in it.
        """
        if self.args.corpus is None:
            raise UserError(f"give --corpus DIR: {self._corpus}")
        root = Path(self.args.corpus)
        if not root.is_dir():
            raise UserError(f"--corpus {root}: no such folder; it is {self._corpus}")
        for name in needed:
            if not (root / name).exists():
                raise UserError(f"{root}: no {name} in it; --corpus is {self._corpus}")
        return root

    def fetch(self, package: debian.Package) -> Path:
        """Return the path of a package, checked: the user's file, or a download.

        Raises:
            UserError: what ``debian.fetch`` raises, or the folder --packages lacks it.
        """
        wanted, given = self._packages[package], getattr(self.args, "package", None)
        if getattr(self.args, "packages", None):
            given = Path(self.args.packages) / wanted.file_name
            if not given.is_file():
                raise UserError(f"--packages {self.args.packages}: no {given.name} in it")
        # One part fetches it for all.
        alone = lock(self.downloads / ".lock") if self.part is not None else nullcontext()
        with alone:
            return debian.fetch(wanted, self.downloads, given)

    def is_current(self, inputs: Iterable[Path] = (), settings: Iterable[Any] = ()) -> bool:
        """Say, and print, whether all was made before from the same inputs by the same code.

        Args:
            inputs: files that are read, but for audio.
            settings: values of the options that the recipe adds.
        """
        if getattr(self.args, "package", None):  # is checked even if nothing is left to do
            self.fetch(next(iter(self._packages)))
        digests = [package.sha256 for package in self._packages.values()]
        corpus = str(getattr(self.args, "corpus", ""))
        key = [str(self.out), corpus, self.counted, *digests, *settings]
        self._stamp = Stamp(self.out / ".stamp.json", key, [*_code(), *map(str, inputs)])
        if self._stamp.is_current():
            print(f"{self.out}: up to date")
            return True
        return False

    def expect(self, expected: Mapping[str, int], found: Mapping[str, int]) -> None:
        """Raise UserError where a count is not the one that the corpus is known to have."""
        for name, count in expected.items() if self.counted else ():
            if found.get(name, 0) != count:
                raise UserError(
                    f"{name} has {found.get(name, 0)}, expected {count}; "
                    "the reader or a rule was changed, or the corpus is another one"
                )

    def convert(self, found: Sequence[Clip], keep_others: bool = False) -> list[Utterance]:
        """Convert clips (``clips.convert``) into ``audio``.

        Raises:
            PartDone: it was the part of this call.
        """
        if self.part is not None:
            self._convert_part(self.part, found)
        return clips.convert(found, self.audio, self.jobs, keep_others, self._checked)

    def convert_sets(self, sets: Mapping[str, Iterable[Clip]]) -> dict[str, list[Utterance]]:
        """Convert the clips of sets (``clips.convert_sets``) into ``audio``.

        Raises:
            PartDone: it was the part of this call.
        """
        if self.part is not None:
            self._convert_part(self.part, clips.distinct(sets.values()))
        return clips.convert_sets(sets, self.audio, self.jobs, self._checked)

    def write(
        self,
        sets: Mapping[str, Sequence[Utterance]],
        folds: Mapping[str, Folds] | None = None,
        disjoint: str = "speaker",
        overlapping: Container[str] = (),
        extra_files: Iterable[Path] = (),
    ) -> None:
        """Write the data directories, the folds, and the stamp last.

        Args:
            sets: utterances by the name of the set.
            folds: folds by the name of the split.
            disjoint: what no two parts of a fold may share: speaker or text.
            overlapping: names of sets that may hold texts of train.
            extra_files: files that the recipe wrote itself.

        Raises:
            UserError: what ``write_sets`` and ``write_folds`` raise.
            PartDone: the audio of this call's part was checked, and nothing else done.
        """
        if self.part is not None:
            rows = {u.audio: u for utterances in sets.values() for u in utterances}
            self._end_part(self.part, self.part.of(list(rows.values())), len(rows))
        files = write_sets(self.out, sets, self.jobs, overlapping, self._checked)
        digests: dict[str, str] = {}
        for name in sets:
            digests |= kaldi_dir.read_table(self.out / name / kaldi_dir.AUDIO_DIGEST)
        for split, found in (folds or {}).items():
            files += write_folds(self.out, split, found, disjoint, digests)
        audio = {Path(u.audio) for utterances in sets.values() for u in utterances}
        self._stamp.write(sorted([*files, *extra_files]), by_size=sorted(audio))  # FLAC has sums
        checked_audio.forget(self.out)

    @cached_property
    def _checked(self) -> Checked:
        """What parts have checked, read before anything is written.

        From then on, until this program ends, no part runs while the parts are joined.
        """
        self._held.enter_context(lock(self.out / ".lock", shared=self.part is not None))
        return checked_audio.checked_audio(self.out)

    def _convert_part(self, part: Part, found: Sequence[Clip]) -> NoReturn:
        utterances = clips.convert(part.of(found), self.audio, self.jobs, True, self._checked)
        self._end_part(part, utterances, len(found))

    def _end_part(self, part: Part, utterances: Sequence[Utterance], total: int) -> NoReturn:
        """Check the audio of a part."""
        checked_audio.check_part(self.out, part, utterances, self.jobs, self._checked)
        count = f"{len(utterances)} of {total}"
        raise PartDone(f"{self.out}: part {part.number} of {part.total}: {count} are ready")


def print_left_out(count: Mapping[str, int]) -> None:
    """Print how many utterances were left out, by reason."""
    found = [f"{number} {reason}" for reason, number in sorted(count.items()) if number]
    print("left out: " + (", ".join(found) or "none"))


def _code() -> list[str]:
    """Return the recipe's script and the modules of ``espnet_ext.data`` that it uses."""
    names = sorted(name for name in sys.modules if name.startswith("espnet_ext.data."))
    used = (getattr(sys.modules[name], "__file__", None) for name in ("__main__", *names))
    return sorted({*filter(None, used), str(clips.AUDIO_CODE)})


def main(
    doc: str | None,
    prepare: Callable[[DataStage], None],
    corpus: str = "",
    packages: Sequence[debian.Package] = (),
    add_options: Callable[[argparse.ArgumentParser], object] | None = None,
    out: str = "data",
) -> None:
    """Run stage 1 from the command line, and end the program.

    Args:
        doc: text of --help: the docstring of the script.
        prepare: makes the data directories, unless they are up to date.
        corpus: what --corpus DIR must be, of a corpus that the user has.
        packages: Debian packages of a corpus that is fetched.
        add_options: adds options of the recipe to the parser.
        out: default of --out.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default=out, help=f"what to write (default: {out})")
    parser.add_argument("--nj", type=at_least(1), default=2, help="processes (default 2)")
    parser.add_argument("--part", type=part, metavar="K/N", help=_PART)
    if packages:
        parser.add_argument("--downloads", default="downloads", help="folder of what is fetched")
        if len(packages) == 1:
            parser.add_argument("--package", metavar="FILE", help="the .deb, if you have it")
        else:
            parser.add_argument("--packages", metavar="DIR", help="folder of the .deb")
        # For tests with other packages.
        parser.add_argument("--sha256", help=argparse.SUPPRESS)
    else:
        parser.add_argument("--corpus", metavar="DIR", help=corpus)
        # For tests on miniature corpora.
        parser.add_argument("--uncounted", action="store_true", help=argparse.SUPPRESS)
    if add_options is not None:
        add_options(parser)
    args = parser.parse_args()
    stage = DataStage(args, corpus, packages)
    sys.exit(run_cli(f"local/{Path(sys.argv[0]).name}", lambda: _prepare(prepare, stage)))


def _prepare(prepare: Callable[[DataStage], None], stage: DataStage) -> None:
    try:
        prepare(stage)
    except PartDone as done:
        print(done)
