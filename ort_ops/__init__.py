"""Operators of the emitted graphs: contracts, numpy references and ONNX Runtime kernels."""
