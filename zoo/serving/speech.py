"""What is served: a decoder, and between text and its ids the tokenizer that belongs to it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jinja2 import TemplateError

from zoo.errors import InputError
from zoo.hf import ZooForCausalLM, import_weights
from zoo.hf.folders import is_run, load_any, load_tokenizer
from zoo.hf.weights.settings import read_settings
from zoo.hf.weights.transfer import KINDS
from zoo.models import Decoder
from zoo.training.distributed import choose_device

__all__ = ["Speech", "load_served"]

_CONTEXT = 2048  # where nothing says what a model was trained at


class Speech(NamedTuple):
    """A tokenizer of transformers, ids that end an answer, and a template of chats in Jinja in place of its own."""

    tokenizer: Any
    ends: frozenset[int]
    template: str | None = None

    def encode(self, text: str) -> list[int]:
        """Return the ids of the beginning of a text; what looks like a separator in it is text."""
        return list(self.tokenizer(text, split_special_tokens=True).input_ids)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Return the ids of a chat up to where an answer begins, or raise `InputError` where the template does."""
        if not (self.template or self.tokenizer.chat_template):
            raise InputError("messages: this model has no template for chats; ask for completions")
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages), chat_template=self.template, tokenize=False, add_generation_prompt=True
            )
        except (TemplateError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"messages: the template for chats refuses them: {error}") from error
        return list(self.tokenizer(text, add_special_tokens=self.template is not None).input_ids)

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids; separators leave no trace."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


def load_served(
    path: Path, *, device: torch.device | str | None = None, template: str | None = None
) -> tuple[Decoder, Speech, int]:
    """Return the decoder of a run or a folder of transformers, its tokenizer, and the context it was trained at.

    A folder is what `zoo export --hf` wrote, or has weights that `zoo.hf.import_weights` reads, and a tokenizer. The
    device is by default a GPU if there is one, else the CPU.

    Raises:
        CheckpointError: the run has no checkpoint yet, or it is damaged.
        InputError: there is no such model here, it knows no text, or it has no tokenizer.
    """
    values = {} if is_run(path) or not (path / "config.json").is_file() else read_settings(path).values
    if values.get("model_type") in KINDS:
        decoder, tokenizer = import_weights(path).to(choose_device(device)), load_tokenizer(path, required=True)
        context = values.get("max_position_embeddings")
    else:
        model, tokenizer, context = load_any(path, device=device)
        if not isinstance(model, ZooForCausalLM):
            raise InputError(f"path: expected a zoo model or one of {', '.join(KINDS)}, was {model.config.model_type}")
        decoder = model.decoder
    if context is None:
        context = decoder.config.max_positions if decoder.config.positions == "learned" else _CONTEXT
    eos = values.get("eos_token_id")
    ends = frozenset((*(eos if isinstance(eos, list) else (eos,)), tokenizer.eos_token_id)) - {None}
    return decoder.eval(), Speech(tokenizer, ends, template), context
