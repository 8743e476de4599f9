"""A trained network as ONNX, with what its users need to know of the images (python -m scripts.export)."""
