"""Documents as tokens: whole, in pieces, and in several processes."""

import multiprocessing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.data import ByteTokenizer, encoding
from zoo.data.bpe import BytePairTokenizer
from zoo.data.encoding import Encoded, SidedDocument, encode_documents
from zoo.data.pieces import cut_pieces, text_pieces

texts = st.lists(st.text("a\u00e9\n\U0001f600", min_size=1), max_size=6)


def tokens(parts: list[Encoded], *, is_held_back: bool) -> list[int]:
    return [int(token) for part in parts if part.is_held_back == is_held_back for token in part.ids]


@given(texts, st.integers(4, 9), st.integers(1, 9), st.randoms())
def test_pieces_and_sides_change_nothing(texts, piece_size, chunk_size, random):
    documents = []
    for text in texts:
        data = text.encode()
        chunks = [data[at : at + chunk_size] for at in range(0, len(data), chunk_size)]  # which cut characters
        documents.append((data, SidedDocument(chunks, len(data), random.random() < 0.5)))
        pieces = list(text_pieces(data, piece_size))
        assert "".join(piece.decode() for piece in pieces).encode() == data  # no character is cut
        assert pieces == list(cut_pieces(chunks, piece_size))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(encoding, "_WHOLE", 5)
        monkeypatch.setattr(encoding, "_PIECE", piece_size)
        monkeypatch.setattr(encoding, "_BATCH", 10)
        parts = list(encode_documents([document for _, document in documents], ByteTokenizer()))
    assert all(part.ids.dtype == "uint16" and part.byte_counts is None for part in parts)
    for is_held_back in (False, True):
        own = [data for data, document in documents if document.is_held_back == is_held_back]
        assert tokens(parts, is_held_back=is_held_back) == [token for data in own for token in (256, *data)]
        assert sum(part.text_bytes for part in parts if part.is_held_back == is_held_back) == sum(map(len, own))


@pytest.fixture(params=["fork", pytest.param("forkserver", marks=pytest.mark.slow)])
def _start(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes start as they do, or quickly, without what they import."""
    if request.param == "fork":
        monkeypatch.setattr(encoding, "_context", lambda: multiprocessing.get_context("fork"))


@pytest.mark.usefixtures("_start")
def test_several_processes_give_what_one_gives(monkeypatch):
    monkeypatch.setattr(encoding, "_BATCH", 1000)
    tokenizer = BytePairTokenizer.train([b"some words of a text that repeats some words " * 50], 300)
    texts = [b"some words %d " % index * 20 for index in range(40)]
    documents = [SidedDocument([text], len(text), index % 3 == 0) for index, text in enumerate(texts)]
    one, two = (list(encode_documents(documents, tokenizer, processes)) for processes in (1, 2))
    assert len(one) == len(two) > 5
    for part, same in zip(one, two, strict=True):
        assert part.ids.tolist() == same.ids.tolist()
        assert (part.text_bytes, part.is_held_back) == (same.text_bytes, same.is_held_back)


@pytest.mark.usefixtures("_start")
def test_an_error_ends_the_processes(monkeypatch):
    monkeypatch.setattr(encoding, "_BATCH", 4)

    def documents():
        yield SidedDocument([b"text"], 4, False)
        yield SidedDocument([b"text"], 4, False)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        list(encode_documents(documents(), ByteTokenizer(), processes=2))
    assert not multiprocessing.active_children()
