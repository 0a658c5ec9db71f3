"""The zoo and Hugging Face transformers: models converted in place.

    import zoo.hf

    print(zoo.hf.convert(model, "gated-power", p=2))

Importing this makes the Auto* classes know converted models. It needs `pip install 'mixer-zoo[hf]'`.
"""

import importlib.util

if importlib.util.find_spec("transformers") is None:
    raise ImportError("zoo.hf needs transformers: pip install 'mixer-zoo[hf]'")

from zoo.hf.classes import register_converted
from zoo.hf.convert import convert, restore
from zoo.hf.report import ConversionReport, report

__all__ = ["ConversionReport", "convert", "report", "restore"]

register_converted()
