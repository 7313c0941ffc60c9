"""Builds engines; copied into bundles byte for byte. Needs the standard library and TensorRT."""
