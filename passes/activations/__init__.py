"""Activations and attention operands on integer grids."""
