"""ESPnet without type checks at run time, others with them, and light imports without typeguard."""

import subprocess
import sys

import pytest
import typeguard

PROGRAM = """
import sys
import espnet_ext.bridge.muted
assert "typeguard" not in sys.modules
import espnet2
print("typeguard" in sys.modules)
"""


def test_typeguard_is_imported_with_espnet_only():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_functions_of_espnet_stay_as_they_are():
    from espnet2.asr.ctc import CTC

    assert "TypeCheckMemo" not in CTC.__init__.__code__.co_names

    def length(text: str) -> int:
        return text

    length.__module__ = "espnet2.some.module"
    assert typeguard.typechecked(length) is length
    assert typeguard.typechecked(forward_ref_policy=typeguard.ForwardRefPolicy.WARN)(length) is (
        length
    )


@typeguard.typechecked
def _length(text: str) -> int:
    return len(text)


def test_functions_of_others_are_checked():
    assert _length("abc") == 3
    with pytest.raises(typeguard.TypeCheckError):
        _length(3)
