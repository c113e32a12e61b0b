"""kill -9 at random moments of all stages: what was killed goes on and ends as if it were not."""

import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures import finished, forked, miniature, ranks
from tests.recipes.test_kill import written

STAGES = tuple(finished.VERBS)
# A stage in parts is started for each part, and then without one, which joins them.
PARTS = [("--part", f"{k}/3") for k in (1, 2, 3)]
TWO = ("--processes", "2")
SYSTEMS = ("one process", "two processes", "in parts")


def commands(system: str) -> Iterator[tuple[str, ...]]:
    """The commands of all stages of a system."""
    for verb in STAGES:
        words = finished.VERBS[verb]
        if verb == "train" and system == "two processes":
            words = (*words, *TWO)
        if verb in ("features", "decode") and system == "in parts":
            yield from ((*words, *part) for part in PARTS)
        yield words


def start(folder: Path, words: tuple[str, ...]) -> forked.Command:
    prepare = ranks.instead_of_torch if set(TWO) <= set(words) else None
    return forked.Command(folder, words, folder.with_suffix(".logs"), prepare)


class Recipe:
    """A recipe after stage 1, and what each system leaves and how long it takes without a kill."""

    def __init__(self, folder: Path):
        self.before = miniature.make_with_data(folder, max_epoch=2)
        forked.load()
        self.after: dict[str, dict[str, object]] = {}
        self.seconds: dict[str, list[float]] = {}
        for system in SYSTEMS:
            copy = Path(shutil.copytree(self.before, folder / system.replace(" ", "_")))
            self.seconds[system] = []
            for words in commands(system):
                begun = time.monotonic()
                ended = start(copy, words).wait()
                assert ended.code == 0, ended.stdout + ended.stderr
                self.seconds[system].append(time.monotonic() - begun)
            self.after[system] = results(copy)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return Recipe(tmp_path_factory.mktemp("kills"))


def results(folder: Path) -> dict[str, object]:
    """All that must not depend on kills: no times, nor what the last command printed."""
    timed = (".stamp", "result.json", "README.md", "scores.json", "LICENSE.md")
    found = {k: v for k, v in written(folder).items() if not k.endswith(timed)}
    return {k: v for k, v in found.items() if not Path(k).name.startswith("rank")}


def killed_at_random(recipe: Recipe, system: str, folder: Path, kills: int, seed: int) -> int:
    """Run all stages, killed ``kills`` times; return how often a kill came before the end."""
    generator = random.Random(f"{system} {seed}")
    shutil.copytree(recipe.before, folder)
    todo = list(zip(commands(system), recipe.seconds[system], strict=True))
    # Longer commands are killed more often.
    chosen = generator.choices(range(len(todo)), [s for _, s in todo], k=kills)
    reached = 0
    for number, (words, seconds) in enumerate(todo):
        for _ in range(chosen.count(number)):
            command = start(folder, words)
            deadline = time.monotonic() + generator.uniform(0.02, 1.0) * seconds
            while time.monotonic() < deadline and not command.ended():
                time.sleep(0.002)
            reached += not command.ended()
            command.kill()
            command.wait()
        ended = start(folder, words).wait()
        assert ended.code == 0, ended.stdout + ended.stderr
    assert results(folder) == recipe.after[system]
    left = [p for n in ("dump", "data", "exp") for p in (folder / n).rglob(".tmp*")]
    assert not left
    return reached


@pytest.mark.parametrize("system", SYSTEMS)
def test_killed_at_random_moments(recipe, system, tmp_path, tally):
    reached = killed_at_random(recipe, system, tmp_path / "recipe", 4, 0)
    for _ in range(reached):
        tally(f"kill -9, {system}", "resumed")


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("system", SYSTEMS)
def test_killed_often_at_random_moments(recipe, system, seed, tmp_path, tally):
    reached = killed_at_random(recipe, system, tmp_path / "recipe", 15, seed)
    for _ in range(reached):
        tally(f"kill -9, {system}", "resumed")


@pytest.mark.parametrize("verb", ["features", "train", "decode"])
def test_two_runs_in_one_folder(recipe, verb, tmp_path, tally):
    """Both end well, or one says that the other runs; nothing is mixed."""
    folder = Path(shutil.copytree(recipe.before, tmp_path / "recipe"))
    for before in STAGES[: STAGES.index(verb)]:
        assert start(folder, finished.VERBS[before]).wait().code == 0
    words = finished.VERBS[verb]
    both = [forked.Command(folder, words, tmp_path / f"logs{k}") for k in (1, 2)]
    ended = sorted((command.wait() for command in both), key=lambda found: found.code)
    assert ended[0].code == 0, ended
    if ended[1].code:
        line = "another process runs in exp/tiny; wait for it or end it"
        assert ended[1].stderr.strip() == f"espnet-ext {verb}: error: {line}"
    for after in STAGES[STAGES.index(verb) :]:
        assert start(folder, finished.VERBS[after]).wait().code == 0
    assert results(folder) == recipe.after["one process"]
    tally("two runs in one folder", "kept apart")


YEAR = 365 * 86400


def date(folder: Path, when: float) -> None:
    """Set the time of all files of a folder."""
    for path in folder.rglob("*"):
        if not path.is_symlink():
            os.utime(path, (when, when))


def test_a_clock_that_is_set_back(recipe, tmp_path, tally):
    """Files of the future, then a stage after a stage by a clock that runs in the past."""
    folder = Path(shutil.copytree(recipe.before, tmp_path / "recipe"))
    now = time.time()
    for years, verb in enumerate(STAGES, 1):
        date(folder, now + YEAR)

        def set_back(seconds: float = years * YEAR) -> None:
            plain = time.time
            time.time = lambda: plain() - seconds

        ended = forked.Command(folder, finished.VERBS[verb], tmp_path / "logs", set_back).wait()
        assert ended.code == 0, ended.stderr
        date(folder, now - YEAR * years)
        ended = start(folder, finished.VERBS[verb]).wait()
        assert ended.code == 0 and "up to date" in ended.stdout, ended
        tally("clock set back", "no effect")
    assert results(folder) == recipe.after["one process"]
    # A change is a change, though its file is older than what was made of it.
    text = folder / "data/train/text"
    text.write_text(text.read_text().replace("river", "liver"))
    os.utime(text, (now - 50 * YEAR, now - 50 * YEAR))
    ended = start(folder, finished.VERBS["tokens"]).wait()
    assert "up to date" not in ended.stdout
    tally("clock set back", "made again")
