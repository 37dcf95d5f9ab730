"""ONNX files with quantized layers, and how far a runtime agrees with them."""
