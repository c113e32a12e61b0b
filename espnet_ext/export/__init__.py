"""Models as ONNX graphs, for sherpa-onnx and ONNX Runtime."""
