"""PyTorch: sources (weights, .pt2, TorchScript), the way to ONNX, and the runtimes of what PyTorch serves."""
