"""Documents as tokens, in memory and in a temporary file, whole and in pieces."""

import tempfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.data import ByteTokenizer, packing
from zoo.data.packing import pack_documents
from zoo.data.pieces import text_pieces
from zoo.errors import CorpusError


@given(st.lists(st.text("a\u00e9\n\U0001f600"), max_size=6), st.integers(4, 9))
def test_pieces_and_files_change_nothing(texts, piece_size):
    documents = [text.encode() for text in texts]
    expected = pack_documents(documents, ByteTokenizer())
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(packing, "_PIECE", piece_size)
        for document in documents:
            pieces = [piece.decode() for piece in text_pieces(document, piece_size)]  # no character is cut
            assert "".join(pieces).encode() == document
        monkeypatch.setattr(packing, "_IN_MEMORY", -1)
        if documents:
            kept = pack_documents(documents, ByteTokenizer())
            assert isinstance(kept, np.memmap)
            assert np.array_equal(kept, expected)


def test_a_full_disk_is_one_line(monkeypatch):
    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packing, "_IN_MEMORY", 1)
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(CorpusError, match=r"tokens cannot be kept in .* \(TMPDIR\): No space left on device"):
        pack_documents([b"text"], ByteTokenizer())
