"""Which states of the decoding trajectory a model is calibrated on, and what each token weighs."""
