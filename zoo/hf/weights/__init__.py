"""Weights of transformers' files as zoo models, and back, every key of both matched by name."""

from zoo.hf.weights.transfer import export_weights, import_weights

__all__ = ["export_weights", "import_weights"]
