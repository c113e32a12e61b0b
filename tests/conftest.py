"""What all tests share: one thread, so that times and sums repeat, and fixed seeds."""

import os
import random
import sys
import tempfile

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Signatures of ESPnet are cached; not in the home of whoever runs the tests.
os.environ["XDG_CACHE_HOME"] = f"{tempfile.gettempdir()}/espnet_ext_tests_{os.getuid()}"


@pytest.fixture(autouse=True)
def _repeatable():
    """Seed what the test has imported; tests that need no torch do not pay for it."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        torch.set_num_threads(1)
        torch.manual_seed(0)
