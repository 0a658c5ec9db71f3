"""Text and token shards as training data: sources, tokenizers, the split, batches and bits per byte."""

from zoo.data.batches import Batch, Batches, validation_batches
from zoo.data.bits import bigram_bits_per_byte, bits_per_byte, bytes_in, bytes_of
from zoo.data.corpus import Corpus, load_corpus, read_text
from zoo.data.split import split_documents
from zoo.data.stream import TokenStream
from zoo.data.tokenizer import ByteTokenizer, RawTokens, Tokenizer, load_tokenizer, tokenizer_of
from zoo.data.writing import write_shard
from zoo.recipe.data import SEPARATOR, DataConfig

__all__ = [
    "SEPARATOR",
    "Batch",
    "Batches",
    "ByteTokenizer",
    "Corpus",
    "DataConfig",
    "RawTokens",
    "TokenStream",
    "Tokenizer",
    "bigram_bits_per_byte",
    "bits_per_byte",
    "bytes_in",
    "bytes_of",
    "load_corpus",
    "load_tokenizer",
    "read_text",
    "split_documents",
    "tokenizer_of",
    "validation_batches",
    "write_shard",
]
