"""scikit-learn, XGBoost and LightGBM: sources and the way to ONNX."""
