"""Text that is told piece by piece is the text of all tokens, up to the first stop."""

from hypothesis import example, given
from hypothesis import strategies as st

from zoo.data import ByteTokenizer
from zoo.hf import to_hf_tokenizer
from zoo.serving.text import TextStream

BYTES = ByteTokenizer()

tokens = st.lists(st.integers(0, 256) | st.sampled_from(list("a é\U0001f600".encode())), max_size=20)
texts = st.text("ab é", max_size=12).map(lambda text: list(text.encode()))


def told(stream: TextStream, ids: list[int]) -> str:
    pieces = []
    for token in ids:
        pieces.append(stream.add(token))
        if stream.stopped:
            break
    return "".join([*pieces, stream.finish()])


@given(texts, tokens | texts)
def test_pieces_are_the_whole_text(prompt: list[int], ids: list[int]) -> None:
    assert told(TextStream(BYTES.decode, [256, *prompt]), ids) == BYTES.decode(ids)


@given(texts, texts, st.lists(st.text("ab é", max_size=3), max_size=3))
@example([], list(b"aba"), ["b", "aba"])
def test_a_text_ends_before_the_first_stop(prompt: list[int], ids: list[int], stops: list[str]) -> None:
    """That is the one which is whole first, as tokens come; of several, the one that begins first."""
    stream = TextStream(BYTES.decode, [256, *prompt], stops)
    stops = [stop for stop in stops if stop]
    read = (BYTES.decode(ids[:count]) for count in range(len(ids) + 1))
    text = next((text for text in read if any(stop in text for stop in stops)), BYTES.decode(ids))
    assert told(stream, ids) == text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]
    assert stream.stopped == any(stop in text for stop in stops)


def test_what_may_begin_a_stop_is_held_back() -> None:
    stream = TextStream(BYTES.decode, [256], ["END"])
    assert [stream.add(ord(letter)) for letter in "aENbE"] == ["a", "", "", "ENb", ""]
    assert stream.finish() == "E"


@given(texts, texts)
def test_tokenizers_of_transformers_tell_the_same(prompt: list[int], ids: list[int]) -> None:
    tokenizer = to_hf_tokenizer(BYTES)
    stream = TextStream(lambda ids: tokenizer.decode(ids, skip_special_tokens=True), [256, *prompt])
    assert told(stream, ids) == BYTES.decode(ids)
