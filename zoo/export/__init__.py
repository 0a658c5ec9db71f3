"""Models as torch.export programs: reading a prompt and decoding, without the code that built them.

A folder holds two programs, their weights in one file of safetensors, and `model.json`, which names the three by the
hashes of their bytes and says what the state looks like. Loading needs this package for its ops, and neither the recipe
nor a checkpoint.
"""

from zoo.export.model import ExportedModel, export_model, load_exported

__all__ = ["ExportedModel", "export_model", "load_exported"]
