"""A zoo of time-mixing layers for language models, built around torch.compile.

    import zoo

    model = zoo.build("gpt2-124m", mixer="gated-power", p=2)
    logits, state = model(tokens, return_state=True)

The public names below are imported on first use, so that the command line answers without waiting for torch.
"""

# ruff: noqa: F401 - the imports under TYPE_CHECKING tell type checkers what `__getattr__` gives.

import importlib
from typing import TYPE_CHECKING, Any

from zoo.version import __version__

_HOMES = {
    "zoo.builder": ("build", "shrink"),
    "zoo.drop_in": ("scaled_dot_product_power_attention",),
    "zoo.errors": ("CheckpointError", "ConfigError", "CorpusError", "InputError", "TrainingError", "ZooError"),
    "zoo.generation": ("generate",),
    "zoo.kernels.delta": ("DeltaAttentionOutput", "delta_attention", "delta_attention_step", "init_delta_state"),
    "zoo.kernels.power": (
        "PowerAttentionOutput",
        "PowerState",
        "debug_checks",
        "init_power_state",
        "power_attention",
        "power_attention_step",
        "state_limit",
        "state_size",
    ),
    "zoo.models": ("Decoder", "DecoderConfig"),
    "zoo.recipe": ("Recipe", "available_recipes", "load_recipe"),
    "zoo.states": ("detach_state", "load_state", "move_state", "reorder_state", "save_state", "state_bytes"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME_OF)]

if TYPE_CHECKING:
    from zoo.builder import build as build
    from zoo.builder import shrink as shrink
    from zoo.drop_in import scaled_dot_product_power_attention
    from zoo.errors import CheckpointError, ConfigError, CorpusError, InputError, TrainingError, ZooError
    from zoo.generation import generate
    from zoo.kernels.delta import DeltaAttentionOutput, delta_attention, delta_attention_step, init_delta_state
    from zoo.kernels.power import (
        PowerAttentionOutput,
        PowerState,
        debug_checks,
        init_power_state,
        power_attention,
        power_attention_step,
        state_limit,
        state_size,
    )
    from zoo.models import Decoder, DecoderConfig
    from zoo.recipe import Recipe, available_recipes, load_recipe
    from zoo.states import detach_state, load_state, move_state, reorder_state, save_state, state_bytes


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
