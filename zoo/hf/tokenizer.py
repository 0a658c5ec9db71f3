"""The zoo's tokenizers as tokenizers of transformers."""

import tempfile
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from zoo.data import ByteTokenizer, Tokenizer
from zoo.data.bpe import BytePairTokenizer
from zoo.data.library import DOCUMENT
from zoo.errors import InputError

__all__ = ["to_hf_tokenizer"]


def to_hf_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Return a tokenizer with the same ids, which starts every text with the separator, as documents do in training.

    The separator also ends and pads a text; padding stands on the left, where a recurrence can forget it.

    Raises:
        InputError: it has no text, only ids.
    """
    if isinstance(tokenizer, ByteTokenizer):
        backend = _bytes()
    elif isinstance(tokenizer, BytePairTokenizer):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tokenizer.json"
            tokenizer.save(path)
            backend = tokenizers.Tokenizer.from_file(str(path))
    else:
        raise InputError(f"tokenizer: expected bytes or byte pairs, was {type(tokenizer).__name__}, which has no text")
    separator = tokenizer.separator
    name = backend.id_to_token(separator)
    backend.post_processor = processors.TemplateProcessing(single=f"{name} $A", special_tokens=[(name, separator)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=name, eos_token=name, pad_token=name, padding_side="left",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def _bytes() -> tokenizers.Tokenizer:
    """Bytes as byte pairs of which none were merged: each has the character by which byte-level tokenizers spell it."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    spelled = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=spelled, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([tokenizers.AddedToken(DOCUMENT, special=True, normalized=False)])
    return backend
