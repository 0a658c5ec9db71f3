"""Classes of converted models, made at run time from transformers' own, and known to its Auto* classes."""

import functools
import importlib.util
import inspect
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_MAPPING,
)

from zoo.errors import ConfigError, InputError
from zoo.hf.attention import (
    INTERFACE,
    ConvertedAttention,
    attention_modules,
    convert_attention,
    mixers_of,
    new_parts,
)
from zoo.hf.cache_layer import put_state_layers
from zoo.hf.conversion import Conversion
from zoo.hf.resets import packing_resets, padding_resets
from zoo.hf.stub import write_stub

__all__ = [
    "PREFIX",
    "ConvertedModel",
    "check_converted",
    "converted_class",
    "converted_config",
    "install",
    "register_converted",
]

PREFIX = "zoo_"
"""What stands before the model type of a converted model."""


class ConvertedConfig:
    """Stands before a config's class: `zoo` is the conversion, as plain data."""

    base: ClassVar[type[PreTrainedConfig]]

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Do nothing: a stub is written beside the weights, and no file of the zoo is copied."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _empty, (converted_config, self.base), self.__dict__


class ConvertedModel(PreTrainedModel):
    """Stands before a model's class: converts its layers, and hands them what a recurrence has to know of a batch."""

    base: ClassVar[type[PreTrainedModel]]
    parameters_by_place: ClassVar[tuple[str, ...]]

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        install(self, Conversion.from_mapping(config.zoo, "config.zoo"))

    def _get_name(self) -> str:
        return self.base.__name__  # by which trainers tell whether labels are shifted

    def _named(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the arguments of `forward` by name, and with them where sequences begin."""
        named = dict(zip(self.parameters_by_place, args, strict=False)) | kwargs
        if "zoo_resets" in named:
            return named
        tokens = next(x for name in ("input_ids", "inputs_embeds") if (x := named.get(name)) is not None)
        mask, positions, cache = (named.get(name) for name in ("attention_mask", "position_ids", "cache"))
        resets = None
        if isinstance(mask, Tensor):
            resets = padding_resets(mask, tokens.shape[1], keeps_state=cache is not None)
        elif positions is not None and cache is None:
            resets = packing_resets(positions, tokens.shape[0])
        return named | {"zoo_resets": resets}

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Start gates and norms that no checkpoint held, before the submodels zero what they do not know."""
        for module in self.modules():
            if isinstance(module, ConvertedAttention):
                for part in new_parts(module):
                    _initialize(part)
        super().initialize_weights()

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As transformers', and beside the weights a few lines of Python that import the zoo."""
        with write_stub(self, save_directory, _auto_class(self)):
            super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Do nothing, as for configs."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _empty, (converted_class, self.base), self.__dict__


class ConvertedGeneration(GenerationMixin):
    """Stands before `ConvertedModel` where the model generates: puts states into caches."""

    def _with_resets(self, inputs: dict[str, Any], mask: Any) -> dict[str, Any]:
        """Return a step's inputs with where sequences begin, if its padding has become masks of pairs by now."""
        if isinstance(mask, Tensor) and inputs.get("attention_mask") is not mask:
            tokens = next(x for name in ("input_ids", "inputs_embeds") if (x := inputs.get(name)) is not None)
            inputs["zoo_resets"] = padding_resets(mask, tokens.shape[1], keeps_state=True)
        return inputs

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: Any, *args: Any, **kwargs: Any
    ) -> None:
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        cache = model_kwargs.get("cache")
        if isinstance(cache, Cache):
            put_state_layers(cache, mixers_of(self))
            if generation_config.is_assistant:
                cache.activate_past_recording()


def _auto_class(model: PreTrainedModel) -> str:
    return "AutoModelForCausalLM" if model.can_generate() else "AutoModel"


def _empty(make: Any, base: type) -> Any:
    made = make(base)
    return made.__new__(made)


def _initialize(part: Any) -> None:
    parameters = list(part.parameters())
    if not all(getattr(x, "_is_hf_initialized", False) for x in parameters):
        part.initialize(std=0.02)
    x: Any
    for x in (*part.modules(), *parameters):
        x._is_hf_initialized = True


def check_converted(model: Any) -> None:
    """Check that a model is one that was converted.

    Raises:
        InputError: it is not.
    """
    if not isinstance(model, ConvertedModel):
        raise InputError(f"model: expected one that zoo.hf.convert has converted, was {type(model).__name__}")


def install(model: PreTrainedModel, conversion: Conversion) -> None:
    """Convert the layers of a model that a conversion names.

    Raises:
        ConfigError: the model has no such layers.
    """
    found = {module.layer_idx: module for _, module in attention_modules(model)}
    missing = sorted(set(conversion.layers) - found.keys())
    if missing:
        raise ConfigError(f"config.zoo: expected layers among {sorted(found)}, heads name {missing}")
    width = model.config.get_text_config(decoder=True).hidden_size
    for layer in conversion.layers:
        convert_attention(found[layer], conversion, width)
    if found and len(conversion.layers) == len(found):
        # No layer is left that would look at a mask, so that none is made.
        model.config._attn_implementation_internal = INTERFACE


@functools.cache
def converted_config(base: Any) -> Any:
    """Return the config class of converted models whose own is `base`, and make the Auto* classes know it."""
    model_type = PREFIX + base.model_type
    values = {
        "__annotations__": {"zoo": dict | None},
        "zoo": None,
        "model_type": model_type,
        "base": base,
        "__module__": __name__,
        "__doc__": f"`{base.__name__}` of a converted model.",
    }
    made = type(f"Zoo{base.__name__}", (ConvertedConfig, base), values)
    AutoConfig.register(model_type, made, exist_ok=True)
    for auto, mapping in ((AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING), (AutoModel, MODEL_MAPPING)):
        model = mapping.get(base, None)
        if isinstance(model, type):
            auto.register(made, _model_class(model, made), exist_ok=True)
    _tell_peft(base.model_type, model_type)
    return made


def converted_class(base: Any) -> Any:
    """Return the class that a converted model of class `base` has."""
    return _model_class(base, converted_config(base.config_class))


@functools.cache
def _model_class(base: Any, config: Any) -> Any:
    @functools.wraps(base.forward)  # its signature says to trainers which columns the model takes
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return base.forward(self, **self._named(*args, **kwargs))

    values = {
        "base": base,
        "config_class": config,
        "parameters_by_place": tuple(inspect.signature(base.forward).parameters)[1:],
        "forward": forward,
        "__module__": __name__,
        "__doc__": f"`{base.__name__}` with other mixers between its heads.",
    }
    if not issubclass(base, GenerationMixin):
        return type(f"Zoo{base.__name__}", (ConvertedModel, base), values)

    @functools.wraps(base.prepare_inputs_for_generation)  # whose signature is asked what a prompt may be
    def prepare(self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        inputs = base.prepare_inputs_for_generation(self, *args, **kwargs)
        return self._with_resets(inputs, kwargs.get("attention_mask"))

    values["prepare_inputs_for_generation"] = prepare
    return type(f"Zoo{base.__name__}", (ConvertedGeneration, ConvertedModel, base), values)


def _tell_peft(base: str, model_type: str) -> None:
    """Let adapters find their default targets, which are those of the model that was converted."""
    if importlib.util.find_spec("peft") is None:
        return
    from peft.utils import constants

    for name, mapping in vars(constants).items():
        if name.startswith("TRANSFORMERS_MODELS_TO_") and isinstance(mapping, dict) and base in mapping:
            mapping.setdefault(model_type, mapping[base])


class _Unmade:
    """Stands for a config class that nobody has asked for yet, so that importing the zoo imports no model."""

    base_model_type: ClassVar[str]

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        base: Any = type(AutoConfig.for_model(cls.base_model_type))
        return converted_config(base).from_dict(config_dict, **kwargs)


def register_converted() -> None:
    """Make AutoConfig know the converted kinds of all causal language models, by their type alone."""
    for base in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        values = {"model_type": PREFIX + base, "base_model_type": base, "__module__": __name__}
        AutoConfig.register(PREFIX + base, type("Unmade", (_Unmade,), values), exist_ok=True)


def __getattr__(name: str) -> Any:
    """Make a class by its name, `Zoo` and transformers' own: what a stub beside weights imports."""
    import transformers

    base = getattr(transformers, name.removeprefix("Zoo"), None) if name.startswith("Zoo") else None
    if isinstance(base, type) and issubclass(base, PreTrainedConfig):
        return converted_config(base)
    if isinstance(base, type) and issubclass(base, PreTrainedModel):
        return converted_class(base)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
