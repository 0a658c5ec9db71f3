"""A short convolution along time and SiLU, every channel by itself."""

from zoo.kernels.causal_convolution.api import causal_convolution

__all__ = ["causal_convolution"]
