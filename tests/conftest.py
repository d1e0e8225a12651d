"""Makes the modules beside this file (`onnx_models`, ...) importable from every test."""
