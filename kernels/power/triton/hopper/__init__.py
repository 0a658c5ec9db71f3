"""Kernels for Hopper's warp-group matrix products, in Gluon, for bfloat16 and p = 2."""
