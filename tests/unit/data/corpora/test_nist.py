"""NIST's tables: not UTF-8, and times that cannot be."""

import pytest

from espnet_ext.data.corpora import nist
from espnet_ext.data.corpora.tables import read_tsv
from espnet_ext.errors import UserError
from tests.fixtures import packages


@pytest.mark.parametrize(
    "read", [nist.read_stm, nist.read_pem, lambda p: list(read_tsv(p, ("a",)))]
)
def test_tables_that_are_not_utf_8(tmp_path, read):
    path = packages.write(tmp_path / "table", b"a\tb\n\xff\xfe")
    with pytest.raises(UserError, match="table: not UTF-8 at byte 4"):
        read(path)


@pytest.mark.parametrize("times", ["0 inf", "nan 1", "0 nan", "-inf 1", "2 1", "-1 1"])
def test_times_are_finite_and_in_order(tmp_path, times):
    stm = packages.write(tmp_path / "a.stm", f"f A s {times} words\n".encode())
    pem = packages.write(tmp_path / "a.pem", f"f A s {times}\n".encode())
    with pytest.raises(UserError, match="line 1"):
        nist.read_stm(stm)
    with pytest.raises(UserError, match="line 1"):
        nist.read_pem(pem)
