"""The Open Inference Protocol, version 2, over HTTP: bytes to `TensorRequest`, `TensorAnswer` to bytes. Pure.

`codec.InferCodec` is what a gateway holds for each version it serves. Implemented: the required API with JSON tensors,
the binary tensor data extension (raw binary requests included), the classification and parameters extensions.
"""
