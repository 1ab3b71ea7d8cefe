"""Kernels that the levels share: arrays in, arrays out, nothing that knows about files."""
