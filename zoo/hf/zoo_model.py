"""A zoo model as a model of transformers: its config, and a wrapper that generates, trains, saves and loads."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep

from zoo.blocks.rows import ROWS, order_rows
from zoo.errors import InputError
from zoo.hf.decoder_cache import decoder_layer
from zoo.hf.resets import packing_resets, padding_resets
from zoo.hf.stub import write_stub
from zoo.mixers import mixers
from zoo.models import Decoder, DecoderConfig
from zoo.models.block import Block

_ROWS = {None: 0, "by key head": 1, "by group": ROWS}
_NEWEST_ROWS = "by group"

__all__ = ["ZooConfig", "ZooForCausalLM", "to_hf"]


class ZooConfig(PreTrainedConfig):
    """What a `Decoder` is built from, as plain data.

    Args:
        model: a `DecoderConfig`. (What is called decoder, transformers takes for a config of its own.)
        mixers: the config of each layer's mixer.
        rows: how rows of projections to heads stand in the weights beside a saved config: `by group`; as earlier
            versions saved them, `by key head` those to queries, keys and values, or None; or there are no weights yet.
    """

    model_type = "mixer_zoo"
    model: dict[str, Any] | None = None
    mixers: list[Any] | None = None
    rows: str | None = None
    vocab_size: int = 0
    hidden_size: int = 0
    num_hidden_layers: int = 0
    num_attention_heads: int = 0
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if self.model is not None:
            config = DecoderConfig.from_mapping(self.model, "config.model")
            self.vocab_size, self.hidden_size = config.vocab_size, config.width
            self.num_hidden_layers, self.num_attention_heads = config.layers, config.heads
            self.tie_word_embeddings = config.tie_embeddings
        super().__post_init__(**kwargs)

    @classmethod
    def of(cls, decoder: Decoder, **values: Any) -> "ZooConfig":
        """Return the config of a decoder; `values` are further ones of transformers', such as `eos_token_id`."""
        mixers = [config.model_dump(mode="json") for config in decoder.mixer_configs]
        return cls(model=decoder.config.model_dump(mode="json"), mixers=mixers, **values)

    def build(self) -> Decoder:
        """Return a decoder with freshly drawn weights.

        Raises:
            ConfigError: names the key that does not fit.
        """
        config = DecoderConfig.from_mapping(self.model, "config.model")
        return Decoder(config, [_mixer_config(values) for values in self.mixers or ()])


def _mixer_config(values: Any) -> Any:
    name = values.get("name") if isinstance(values, dict) else None
    if name not in mixers:
        raise InputError(f"config.mixers: expected one of {', '.join(mixers)} as name, was {name!r}")
    return mixers[name].config.from_mapping(values, "config.mixers")


class ZooForCausalLM(PreTrainedModel, GenerationMixin):
    """A `Decoder` behind the methods that transformers' users know.

    Every mixer generates from a state in the cache; padding on the left is forgotten at a row's first real token.
    Nothing that `torch.compile` needs is lost: `model.decoder` is the zoo's own model, with its own compiled decoding.
    """

    config_class = ZooConfig
    base_model_prefix = "decoder"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # noqa: RUF012 - as transformers reads it
    _supports_sdpa = True

    def __init__(self, config: ZooConfig) -> None:
        super().__init__(config)
        self.decoder = config.build()
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return logits `[B, T, vocab]`, and the loss where there are labels.

        Args:
            input_ids: `[B, T]` int64.
            attention_mask: `[B, S]`, one for real tokens, of all tokens so far; padding stands on the left.
            position_ids: `[B, T]`: without a mask and a cache, says where packed sequences begin.
            cache: what an earlier call returned.
            inputs_embeds: None: a decoder reads tokens.
            labels: `[B, T]`, -100 where there is none; the same tokens as the inputs, shifted here.
            use_cache: whether a cache is returned; None: not in training.
            logits_to_keep: only those of so many last tokens, or at these places; 0: all.

        Raises:
            InputError: names the argument, what it was and what it must be.
        """
        if input_ids is None or inputs_embeds is not None:
            raise InputError("inputs_embeds: expected None and input_ids, a zoo model reads tokens")
        resets = None
        if attention_mask is not None:
            resets = padding_resets(attention_mask, input_ids.shape[1], keeps_state=cache is not None)
        elif position_ids is not None and cache is None:
            resets = packing_resets(position_ids, input_ids.shape[0])
        if cache is None and (use_cache if use_cache is not None else not self.training):
            cache = DynamicCache()
        if cache is None:
            logits, _ = self.decoder(input_ids, resets=resets)
        else:
            logits = decoder_layer(cache, self.decoder).run(input_ids, resets)
        logits = slice_logits_to_keep(logits, logits_to_keep)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, cache=cache)

    def get_input_embeddings(self) -> nn.Module:
        return self.decoder.token_embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.decoder.token_embedding = value

    def get_output_embeddings(self) -> nn.Module | None:
        """The head; None where it is the embedding's matrix, which has no module of its own."""
        return self.decoder.head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.decoder.head = new_embeddings

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """As transformers', for tied and untied embeddings; the decoder then knows the new ids too."""
        embedding = super().resize_token_embeddings(*args, **kwargs)
        self.decoder.config = self.decoder.config.replace(vocab_size=embedding.weight.shape[0])
        self.config.model = self.decoder.config.model_dump(mode="json")
        self.config.vocab_size = self.decoder.config.vocab_size
        return embedding

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As transformers', also of what earlier versions saved."""
        found = super().from_pretrained(*args, **kwargs)
        model = found[0] if isinstance(found, tuple) else found
        if model.config.rows not in _ROWS:
            raise InputError(f"rows: expected one of {', '.join(map(str, _ROWS))}, was {model.config.rows!r}")
        own = dict(model.named_parameters())
        with torch.no_grad():
            for name, x in order_rows(model, own, _ROWS[model.config.rows]).items():
                if x is not own[name]:
                    own[name].copy_(x)
        model.config.rows = _NEWEST_ROWS
        return found

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As transformers', and beside the weights a few lines of Python that import the zoo."""
        self.config.rows = _NEWEST_ROWS
        with write_stub(self, save_directory, "AutoModelForCausalLM"):
            super().save_pretrained(save_directory, *args, **kwargs)

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Draw parameters that no checkpoint held as the zoo does; the others stay."""
        loaded = [p for p in self.parameters() if getattr(p, "_is_hf_initialized", False)]
        if len(loaded) < len(list(self.parameters())):
            kept = [p.detach().clone() for p in loaded]
            self.decoder.reset_parameters()
            for parameter, value in zip(loaded, kept, strict=True):
                parameter.copy_(value)
        for part in self.modules():
            vars(part)["_is_hf_initialized"] = True

    def _set_gradient_checkpointing(
        self,
        enable: bool = True,
        gradient_checkpointing_func: Callable[..., Any] | None = None,
        every_n_layers: int = 1,
    ) -> None:
        """Let every so many-th block be computed again in the backward pass; always without re-entrance."""
        self.gradient_checkpointing = enable
        for layer, block in enumerate(self.decoder.blocks):
            assert isinstance(block, Block)
            block.checkpointing = "full" if enable and layer % every_n_layers == 0 else "none"

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], generation_mode: Any, batch_size: int, length: int
    ) -> None:
        super()._prepare_cache_for_generation(generation_config, model_kwargs, generation_mode, batch_size, length)
        cache = model_kwargs.get("cache")
        if isinstance(cache, Cache):
            layer = decoder_layer(cache, self.decoder, length)
            if generation_config.is_assistant:
                layer.activate_past_recording()

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Do nothing: a stub is written beside the weights, and no file of the zoo is copied."""


def to_hf(decoder: Decoder, **values: Any) -> ZooForCausalLM:
    """Return a zoo model as a model of transformers; it is the same model, not a copy.

    Args:
        decoder: what `zoo.build` or `zoo.training.load_run` returned.
        values: of its config, such as `eos_token_id`.
    """
    config = ZooConfig.of(decoder, **values)
    with torch.device("meta"):
        model = ZooForCausalLM(config)
    model.decoder = decoder
    model.train(decoder.training)
    model.config.dtype = decoder.token_embedding.weight.dtype
    return model


def register_zoo_model() -> None:
    """Make the Auto* classes know `ZooConfig`."""
    AutoConfig.register(ZooConfig.model_type, ZooConfig, exist_ok=True)
    AutoModelForCausalLM.register(ZooConfig, ZooForCausalLM, exist_ok=True)
