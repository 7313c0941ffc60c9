"""The decode loop, copied unchanged into every bundle: numpy, onnxruntime, standard library."""
