"""TensorRT glue over the operators of `ort_ops`; no operator needs a plugin yet."""
