"""Trained model in, verified artifact out."""
