"""The zoo and Hugging Face transformers: their models converted in place, and the zoo's as models of theirs.

    import zoo.hf

    print(zoo.hf.convert(model, "gated-power", p=2))

Importing this makes the Auto* classes know converted models. It needs `pip install 'mixer-zoo[hf]'`.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    _found = version("transformers")
except PackageNotFoundError:
    _found = "none"
if _found == "none" or tuple(map(int, _found.split(".")[:2])) < (5, 24):
    raise ImportError(f"zoo.hf: expected transformers 5.24 or newer, found {_found}: pip install 'mixer-zoo[hf]'")

from zoo.hf.classes import register_converted
from zoo.hf.convert import convert, restore
from zoo.hf.export import export_run
from zoo.hf.report import ConversionReport, report
from zoo.hf.stages import Stage, StageResult, distill, transfer
from zoo.hf.tokenizer import to_hf_tokenizer
from zoo.hf.weights import export_weights, import_weights
from zoo.hf.zoo_model import ZooConfig, ZooForCausalLM, register_zoo_model, to_hf

__all__ = [
    "ConversionReport",
    "Stage",
    "StageResult",
    "ZooConfig",
    "ZooForCausalLM",
    "convert",
    "distill",
    "export_run",
    "export_weights",
    "import_weights",
    "report",
    "restore",
    "to_hf",
    "to_hf_tokenizer",
    "transfer",
]

register_converted()
register_zoo_model()
