"""How good a model is: right answers, likelihoods, and how far it strays from the float model."""
