"""Which processes a training has, from options and what Slurm or torchrun say."""

import pytest

from espnet_ext.config.processes import Processes, find_processes
from espnet_ext.errors import UserError


def test_one_node_reads_no_variables():
    assert find_processes(2, 1, None, {"SLURM_NODEID": "3"}) == Processes(2)
    assert Processes(2).world == 2 and not Processes(2).alone
    assert Processes().alone


def test_slurm():
    variables = {"SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "gpu7", "SLURM_JOB_ID": "12"}
    assert find_processes(4, 2, None, variables) == Processes(4, 2, 1, "gpu7", 29524)
    assert find_processes(4, 2, None, variables).world == 8


def test_torchrun():
    variables = {"GROUP_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "7000"}
    assert find_processes(1, 2, None, variables) == Processes(1, 2, 0, "a", 7000)
    assert find_processes(1, 2, "b:8000", variables) == Processes(1, 2, 0, "b", 8000)
    assert find_processes(1, 2, "b", variables) == Processes(1, 2, 0, "b", 7000)


@pytest.mark.parametrize(
    ("variables", "master", "line"),
    [
        ({}, None, "which node is this"),
        ({"NODE_RANK": "2"}, "a", "this node's number is 2; they go from 0 on"),
        ({"NODE_RANK": "x"}, "a", "this node's number is x"),
        ({"NODE_RANK": "1"}, None, "where is node 0"),
        ({"NODE_RANK": "1", "SLURM_JOB_NODELIST": "a[1-2]"}, None, "where is node 0"),
        ({"NODE_RANK": "1"}, "a:b", "a port is a number"),
        ({"NODE_RANK": "1"}, "a:65535", "a port is a number"),
    ],
)
def test_what_is_not_known(variables, master, line):
    with pytest.raises(UserError, match=line):
        find_processes(1, 2, master, variables)
