"""Linear layers that initialisation tells apart."""

from torch import nn

__all__ = ["ResidualLinear"]


class ResidualLinear(nn.Linear):
    """A projection whose output is added to the residual stream: the deeper the model, the smaller it starts."""
