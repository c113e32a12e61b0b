"""The memory of child processes."""

import subprocess
import sys
import time

import pytest

from espnet_ext.bridge.memory import peak_of_children

# A process of its own: what a forked test process copies of the tests' memory is its children's.
PROGRAM = """
import multiprocessing, time

from espnet_ext.bridge.memory import peak_of_children

processes = multiprocessing.get_context("fork")
over = processes.Event()


def start(megabytes):
    ready = processes.Event()
    child = processes.Process(target=hold, args=(megabytes, ready), daemon=True)
    child.start()
    ready.wait()
    return child


def hold(megabytes, ready):
    held = b"x" * (megabytes << 20)
    ready.set()
    over.wait()
    return held


earlier = start(150)  # another's: not counted
with peak_of_children(True) as peak:
    assert peak() == 0
    children = [start(40), start(25)]
    end = time.monotonic() + 60
    while peak() < 65 and time.monotonic() < end:
        time.sleep(0.1)
    assert 65 <= peak() < 65 + 30, peak()  # and not what they share with this process
    over.set()
    for child in [earlier, *children]:
        child.join()
    before = peak()
assert peak() == before >= 65
"""


def test_the_memory_of_children_is_counted_while_they_live_and_kept():
    words = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("watch", [False, True])
def test_without_children_nothing_is_counted(watch):
    with peak_of_children(watch) as peak:
        time.sleep(1.2 if watch else 0)
        assert peak() == 0
