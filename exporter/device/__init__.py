"""Copied into bundles byte for byte, to be run on a device; imports nothing of ours."""
