"""Recipes against each other on one model: what each component of a method is worth."""
