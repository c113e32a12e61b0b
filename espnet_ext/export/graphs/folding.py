"""Removes the arithmetic of shapes from a graph whose inputs have fixed shapes.

torch traces every use of a shape. In a small model these nodes are more bytes than the weights.
"""

from collections import deque

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from espnet_ext.export.graphs.graph import nodes_in

_MOST = 4096  # numbers of a constant: weights are left as they are stored
_KINDS = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32}


def fold_shapes(model: onnx.ModelProto) -> None:
    """Replace what depends on shapes and small constants alone by its value, in place."""
    graph = model.graph
    known = _small(graph) | _shapes(model)
    kept: list[onnx.NodeProto] = []
    left = deque(graph.node)
    while left:
        node = left.popleft()
        if node.output[0] in known:
            continue
        if node.op_type == "If":
            if node.input[0] in known:
                branch = _branch(node, bool(known[node.input[0]]))
                graph.initializer.extend(branch.initializer)
                known |= _small(branch)
                left.extendleft(reversed(branch.node))
                continue
        elif node.op_type == "Constant" or all(name in known for name in node.input if name):
            found = evaluated(node, known, model)
            if all(isinstance(value, np.ndarray) and value.size <= _MOST for value in found):
                known |= dict(zip(node.output, found, strict=True))
                continue
        kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    _store(graph, known)


def _branch(node: onnx.NodeProto, condition: bool) -> onnx.GraphProto:
    """The nodes and constants that replace an ``If`` whose condition is known."""
    name = "then_branch" if condition else "else_branch"
    (branch,) = (one.g for one in node.attribute if one.name == name)
    for made, out in zip(branch.output, node.output, strict=True):
        branch.node.append(onnx.helper.make_node("Identity", [made.name], [out]))
    return branch


def _small(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Stored integers of which shapes may be computed."""
    integers = (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL)
    return {
        one.name: numpy_helper.to_array(one)
        for one in graph.initializer
        if one.data_type in integers and np.prod(one.dims) <= _MOST
    }


def _shapes(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """What the nodes Shape give, whatever the values of the inputs."""
    names = [node.output[0] for node in model.graph.node if node.op_type == "Shape"]
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None) for name in names
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options)
    given = {one.name: np.zeros(one.shape, _KINDS[one.type]) for one in session.get_inputs()}
    return dict(zip(names, session.run(names, given), strict=True)) if names else {}


def evaluated(
    node: onnx.NodeProto, known: dict[str, np.ndarray], model: onnx.ModelProto
) -> list[np.ndarray]:
    """The outputs of a node whose inputs are known; ``model`` has the versions of operators."""
    alone = onnx.helper.make_graph(
        [node],
        "node",
        [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in node.input if name],
        [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in node.output],
    )
    made = onnx.helper.make_model(alone, opset_imports=model.opset_import)
    given = {name: known[name] for name in node.input if name}
    return [np.asarray(value) for value in ReferenceEvaluator(made).run(None, given)]


def _store(graph: onnx.GraphProto, known: dict[str, np.ndarray]) -> None:
    """Keep the constants that nodes still read, equal ones once."""
    stored = {one.name for one in graph.initializer}
    first: dict[tuple, str] = {}
    outputs = {one.name for one in graph.output}
    for node in nodes_in(graph):
        for place, name in enumerate(node.input):
            if name in known and name not in stored:
                value = known[name]
                key = (value.dtype.str, value.shape, value.tobytes())
                if key not in first:
                    first[key] = name
                    graph.initializer.append(numpy_helper.from_array(value, name))
                node.input[place] = first[key]
    for name in outputs & known.keys() - stored:
        graph.initializer.append(numpy_helper.from_array(known[name], name))
    read = {name for node in nodes_in(graph) for name in node.input} | outputs
    left = [one for one in graph.initializer if one.name in read]
    del graph.initializer[:]
    graph.initializer.extend(left)
