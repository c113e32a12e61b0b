"""The memory of child processes."""

import multiprocessing
import time

import pytest

from espnet_ext.bridge.memory import peak_of_children

MB = 1 << 20


def hold(megabytes: int, ready, over) -> None:
    held = bytearray(b"x" * (megabytes * MB))
    ready.set()
    over.wait()
    del held


def test_the_memory_of_children_is_counted_while_they_live_and_kept():
    processes = multiprocessing.get_context("fork")
    events = [processes.Event() for _ in range(4)]
    earlier = processes.Process(target=hold, args=(150, events[3], events[2]))
    earlier.start()  # another's: not counted
    events[3].wait()
    with peak_of_children(True) as peak:
        assert peak() == 0
        children = [
            processes.Process(target=hold, args=(megabytes, ready, events[2]))
            for megabytes, ready in zip((40, 25), events[:2], strict=True)
        ]
        for child in children:
            child.start()
        for ready in events[:2]:
            ready.wait()
        end = time.monotonic() + 20
        while peak() < 65 and time.monotonic() < end:
            time.sleep(0.1)
        assert 65 <= peak() < 65 + 60  # and not what they share with this process
        events[2].set()
        for child in [earlier, *children]:
            child.join()
        before = peak()
    assert peak() == before >= 65


@pytest.mark.parametrize("watch", [False, True])
def test_without_children_nothing_is_counted(watch):
    with peak_of_children(watch) as peak:
        time.sleep(1.2 if watch else 0)
        assert peak() == 0
