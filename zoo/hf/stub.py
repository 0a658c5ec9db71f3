"""A few lines of Python beside weights, by which transformers finds classes of the zoo where it was not imported."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zoo.errors import InputError
from zoo.report.files import replace_file

__all__ = ["STUB", "write_stub"]

STUB = "modeling_zoo"
"""Name of the module. transformers runs it only for those who load with `trust_remote_code=True`."""


@contextmanager
def write_stub(model: Any, folder: Any, auto_class: str) -> Iterator[None]:
    """Let a model's config, which is saved inside, name the stub, and write it afterwards."""
    config, kind = type(model.config), type(model)
    model.config.auto_map = {"AutoConfig": f"{STUB}.{config.__name__}", auto_class: f"{STUB}.{kind.__name__}"}
    yield
    replace_file(Path(folder) / f"{STUB}.py", _text(config, kind).encode(), InputError)


def _text(config: type, model: type) -> str:
    return f'''"""Lets transformers find the classes of this model, which are the zoo's."""

try:
    from {model.__module__} import {config.__name__}, {model.__name__}
except ImportError as error:
    raise ImportError("this model needs the package mixer-zoo: pip install 'mixer-zoo[hf]'") from error

__all__ = ["{config.__name__}", "{model.__name__}"]
'''
