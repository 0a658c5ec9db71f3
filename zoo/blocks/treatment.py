"""How the optimiser treats parameters: which of them decay, and at what share of the learning rate they move."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import nn

__all__ = ["STEADY", "Treatment", "treatments"]


class Treatment(NamedTuple):
    """Whether a parameter decays, and the share of the learning rate that it moves at."""

    decays: bool
    share: float = 1.0


STEADY = Treatment(decays=False)
"""Of what keeps its size: norms, biases, offsets of gates, decays."""


def treatments(model: nn.Module) -> dict[str, Treatment]:
    """Return how each parameter of `model` is treated, by name; a shared one under its first name.

    A module says so of parameters at or under it by their names from there on, in an attribute `treatments`; what an
    outer module says goes before what an inner one says. Of others, a `weight` of two dimensions or more decays: of
    linear layers, embeddings and convolutions. Nothing else does.
    """
    found = {
        name: Treatment(decays=name.rpartition(".")[2] == "weight" and parameter.ndim >= 2)
        for name, parameter in model.named_parameters()
    }
    for prefix, module in reversed(list(model.named_modules())):  # inner ones first
        said: Mapping[str, Treatment] = getattr(module, "treatments", {})
        for name, treatment in said.items():
            whole = f"{prefix}.{name}" if prefix else name
            if whole in found:
                found[whole] = treatment
    return found
