"""What README shows as a library's use runs as it stands."""

import re
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_python_example_holds_what_it_asserts():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1
    assert "assert_close" in blocks[0]
    names: dict = {}
    exec(blocks[0], names)
    assert names["merged"] is not names["encoder"]
