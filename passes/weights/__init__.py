"""Weight quantization, one block of the model at a time."""
