"""Graphs with branches, which torch traces where a dimension may be one or not."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from espnet_ext.export.graphs.folding import fold_shapes
from espnet_ext.export.traced.tracing import trace


class Squeeze(torch.nn.Module):
    """Drops a dimension that is 1 in some inputs only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * 2 + 1).squeeze(1)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("width", [1, 3])
def test_a_branch_reads_the_names_around_it(tmp_path, width):
    path = tmp_path / "model.onnx"
    trace(Squeeze(), (torch.zeros(2, 1, 4),), path, {"x": {1: "n"}}, {"y": {1: "n"}})
    model = onnx.load(path)
    assert "If" in {node.op_type for node in model.graph.node}
    x = np.random.default_rng(0).normal(size=(2, width, 4)).astype(np.float32)
    np.testing.assert_array_equal(run(model, x), Squeeze()(torch.from_numpy(x)).numpy())


@pytest.mark.parametrize("width", [2, 3])
def test_a_branch_whose_condition_is_of_shapes_is_chosen(width):
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Constant", [], ["one"], value=_integers([1])),
        helper.make_node("Gather", ["shape", "one"], ["width"]),
        helper.make_node("Constant", [], ["three"], value=_integers([3])),
        helper.make_node("Equal", ["width", "three"], ["is_three"]),
        helper.make_node("Squeeze", ["is_three"], ["condition"]),
        helper.make_node("Cast", ["width"], ["factor"], to=TensorProto.FLOAT),
        helper.make_node(
            "If", ["condition"], ["y"], then_branch=_branch("Mul"), else_branch=_branch("Add")
        ),
    ]
    named = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, width]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, width]),
    ]
    graph = helper.make_graph(nodes, "branches", named[:1], named[1:])
    opset = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    x = np.random.default_rng(0).normal(size=(1, width)).astype(np.float32)
    before = run(model, x)
    np.testing.assert_array_equal(before, x * 3 if width == 3 else x + 2)
    fold_shapes(model)
    assert [node.op_type for node in model.graph.node] == [
        "Mul" if width == 3 else "Add",
        "Identity",
    ]
    np.testing.assert_array_equal(run(model, x), before)


def test_a_branch_that_stays_reads_what_was_computed_outside():
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Cast", ["shape"], ["factor"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["condition"], to=TensorProto.BOOL),
        helper.make_node(
            "If", ["condition"], ["y"], then_branch=_branch("Mul"), else_branch=_branch("Add")
        ),
    ]
    named = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "branches", named[:1], named[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    fold_shapes(model)
    assert [one.name for one in model.graph.initializer] == ["factor"]
    x = np.array([1, 2], np.float32)
    np.testing.assert_array_equal(run(model, x), 2 * x)
    np.testing.assert_array_equal(run(model, 0 * x), 0 * x + 2)


def test_constants_of_a_chosen_branch_are_kept():
    chosen = _branch("Mul")
    chosen.initializer.append(helper.make_tensor("factor", TensorProto.FLOAT, [2], [3, 4]))
    nodes = [
        helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("", 9, [], [True])),
        helper.make_node("If", ["yes"], ["y"], then_branch=chosen, else_branch=chosen),
    ]
    named = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "branches", named[:1], named[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    fold_shapes(model)
    assert "If" not in {node.op_type for node in model.graph.node}
    np.testing.assert_array_equal(run(model, np.array([1, 2], np.float32)), [3, 8])


def _integers(values: list[int]) -> onnx.TensorProto:
    return helper.make_tensor("values", TensorProto.INT64, [len(values)], values)


def _branch(kind: str) -> onnx.GraphProto:
    """x and ``factor``, of the graph around it."""
    output = helper.make_tensor_value_info(f"{kind}_out", TensorProto.FLOAT, None)
    node = helper.make_node(kind, ["x", "factor"], [f"{kind}_out"])
    return helper.make_graph([node], kind, [], [output])
