"""TensorRT and TensorRT-RTX: engines, the recipe to build one on load, and their runtime."""
