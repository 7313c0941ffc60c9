"""TensorRT glue over the operators of `ort_ops`, and what builds them."""
