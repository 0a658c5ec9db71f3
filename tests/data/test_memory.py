"""What reading a text takes: little more than its size, whatever its encoding and however it is cut into files."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from zoo.data import DataConfig, bpe, load_corpus
from zoo.data.bpe import BytePairTokenizer
from zoo.data.pieces import Text, text_pieces

SIZE = 40 * 2**20
BESIDES = 64 * 2**20  # the piece that is tokenized; of 300 MB a fifth


@pytest.mark.parametrize(("encoding", "files"), [("utf-8", 1), ("utf-8", 60), ("latin-1", 1), ("utf-16", 60)])
def test_a_text_takes_its_size_and_a_piece_of_it(encoding: str, files: int, tmp_path: Path) -> None:
    line = "Some words of a text that is about nothing much.\n"
    for number in range(files):
        text = f"{number}\n" + line * (SIZE // len(line) // files)
        (tmp_path / f"{number}.txt").write_text(text, encoding=encoding)
    del text
    tracemalloc.start()
    try:
        corpus = load_corpus(DataConfig(source=str(tmp_path), encoding=encoding, validation_fraction=0.05))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(corpus.train) > 0.9 * SIZE
    assert peak < SIZE + BESIDES


def test_a_tokenizer_is_trained_on_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"".join(b"line %d of a text\n" % number for number in range(400))
    seen: list[bytes] = []

    def watching(document: Text, size: int) -> Iterator[bytes]:
        for piece in text_pieces(document, size):
            seen.append(piece)
            yield piece

    monkeypatch.setattr(bpe, "text_pieces", watching)
    monkeypatch.setattr(bpe, "_PIECE", 100)
    tokenizer = BytePairTokenizer.train([text, memoryview(text)[:50]], 300)
    assert max(map(len, seen)) <= 100
    assert b"".join(seen) == text + text[:50]
    assert tokenizer.decode(tokenizer.encode("line 7")) == "line 7"
