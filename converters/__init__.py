"""Trained model in, verified artifact out.

For programs: `converters.build.convert(source, out, targets, options)` makes artifacts, `converters.wrap.wrap(path,
out)` takes what needs no explanation (`.onnx`, `.pt2`), and `converters.runtime.open_runtime(artifact)` runs them.
"""
