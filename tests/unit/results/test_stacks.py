"""Records of stacks that are broken: one line."""

import pytest

from espnet_ext.errors import UserError
from espnet_ext.results.store import read_results


@pytest.mark.parametrize("kind", ["similarity", "pruning"])
@pytest.mark.parametrize(("content", "says"), [("{", "not valid JSON"), ("{}", "missing key")])
def test_a_broken_record_is_named(tmp_path, kind, content, says):
    path = tmp_path / "toy_probe1" / kind / "small.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(UserError, match=rf"small\.json: {says}"):
        read_results(tmp_path)
