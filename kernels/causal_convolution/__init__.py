"""A short convolution along time and SiLU, every channel by itself."""

from zoo.kernels.causal_convolution.api import causal_convolution
from zoo.kernels.causal_convolution.plain import number_documents

__all__ = ["causal_convolution", "number_documents"]
