"""TensorFlow, Keras and TFLite: sources, the ways from and to ONNX, and the runtimes."""
