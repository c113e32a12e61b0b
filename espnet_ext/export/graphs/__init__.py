"""ONNX graphs: built node by node, with weights in few bits."""
