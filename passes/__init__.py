"""Passes: frozen dataclasses that edit a model in place and return numbers for the manifest."""
