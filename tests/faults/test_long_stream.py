"""A stream of hours: the memory at its end is that at its begin."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.fixtures import forked, streams

MODEL = "exp/tiny/deploy/merged"
WORDS = ("transcribe", MODEL, "--stream", "-")
MINUTE = 60 * streams.RATE  # samples


class Endless:
    """Standard input with minutes of noise and pauses; notes the memory of its reader."""

    def __init__(self, minutes: int, log: Path):
        noise = [streams.wave(5.0, seed) for seed in range(10)]
        pause = np.zeros(streams.RATE, np.float32)
        minute = np.concatenate([part for piece in noise for part in (piece, pause)])[:MINUTE]
        self.minute = (minute * 32768).clip(-32768, 32767).astype("<i2").tobytes()
        self.left, self.place, self.log = minutes * len(self.minute), 0, log

    def read(self, size: int) -> bytes:
        """The next bytes, fewer at the end."""
        size = min(size, self.left, len(self.minute) - self.place)
        found = self.minute[self.place : self.place + size]
        self.left -= size
        self.place += size
        if self.place == len(self.minute):
            self.place = 0
            with open(self.log, "a") as stream:
                stream.write(f"{resident()}\n")
        return found


def resident() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def heard(root: Path, minutes: int) -> list[int]:
    """Stream that many minutes; return the memory after each."""
    streams.make(root, chunk_ms=1600, history_ms=3200)  # large ones: ten hours in minutes
    forked.load()
    log = root / "memory"

    def endless() -> None:
        sys.stdin = type("Stdin", (), {"buffer": Endless(minutes, log)})

    ended = forked.Command(root, WORDS, root / "logs", endless).wait(20 * 3600)
    assert ended.code == 0, ended.stderr
    assert ended.stdout.count("\n") > minutes  # it hears something
    return [int(line) for line in log.read_text().split()]


def assert_constant(memory: list[int], settled: int) -> None:
    """Assert that after the first minutes memory does not grow by more than 4 MiB."""
    assert max(memory[settled:]) - memory[settled] < 4 << 20, memory


def test_minutes_in_constant_memory(tmp_path, tally):
    memory = heard(tmp_path, 4)
    assert len(memory) == 4
    assert_constant(memory, 2)
    tally("stream of 4 minutes", "no effect")


@pytest.mark.faults
def test_ten_hours_in_constant_memory(tmp_path, tally):
    memory = heard(tmp_path, 600)
    assert len(memory) == 600
    assert_constant(memory, 10)
    tally("stream of ten hours", "no effect")
