"""ONNX files and the forms made of them, and ONNX Runtime with its providers."""
