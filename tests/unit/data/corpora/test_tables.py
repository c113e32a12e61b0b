"""Tables of corpora: paths that stay inside, and files that are no CSV."""

import pytest

from espnet_ext.data.corpora.tables import inside, reading_csv
from espnet_ext.errors import UserError
from tests.fixtures import packages


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "", "a\0"])
def test_paths_of_lists_stay_in_the_corpus(tmp_path, name):
    with pytest.raises(UserError, match="leaves the folder"):
        inside(tmp_path, name)


@pytest.mark.parametrize("content", [b"a,b\n\xff\xfe,1\n", b"a,b\n" + b"x" * 200_000 + b",1\n"])
def test_tables_that_are_no_csv(tmp_path, content):
    import csv

    path = packages.write(tmp_path / "a.csv", content)
    with pytest.raises(UserError, match=r"a\.csv: not"), reading_csv(path) as stream:
        list(csv.DictReader(stream))
