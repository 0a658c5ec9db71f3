"""Text and tokens from a model: the prompt at once or in pieces, then one token at a time from a state."""

from zoo.generation.decoding import CompiledDecoder, Decoding, compile_decoder
from zoo.generation.draft import Draft
from zoo.generation.text import generate, generate_tokens

__all__ = ["CompiledDecoder", "Decoding", "Draft", "compile_decoder", "generate", "generate_tokens"]
