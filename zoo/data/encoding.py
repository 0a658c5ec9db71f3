"""Documents to tokens, many at once: in this process, where the tokenizer's library has threads, or in several."""

import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import connection, forkserver, get_context, parent_process, resource_tracker
from multiprocessing.context import BaseContext
from threading import Thread
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from zoo.data.pieces import cut_pieces
from zoo.data.tokenizer import TextTokenizer

__all__ = ["Encoded", "SidedDocument", "encode_documents"]

_WHOLE = 2**22  # bytes of a document that is not cut
_PIECE = 2**18
_BATCH = 2**20  # bytes of text that are tokenized at a time, which take a library some 250 times as much


class SidedDocument(NamedTuple):
    """A document, or a stretch of a lone one, and where it goes."""

    chunks: Iterable[bytes]
    size: int
    """Bytes."""
    is_held_back: bool


class _Piece(NamedTuple):
    text: bytes
    is_held_back: bool
    starts_document: bool


class Encoded(NamedTuple):
    """Tokens of one side, in the order of the documents."""

    ids: NDArray[np.unsignedinteger]
    """`[n]`, uint16 or uint32 as the vocabulary asks for."""
    byte_counts: NDArray[np.uint32] | None
    """Bytes of text that fall to each, `[n]`; of held back text whose ids do not tell, and None else."""
    text_bytes: int
    is_held_back: bool


def encode_documents(
    documents: Iterable[SidedDocument], tokenizer: TextTokenizer, processes: int = 1
) -> Iterator[Encoded]:
    """Yield the tokens of documents, each document started by the tokenizer's separator.

    A document of more than 4 MiB is tokenized in pieces of 256 KiB, cut at a line end where there is one: tokenizers
    take many times a text's size.

    Args:
        documents: in the order wanted; each is read before the next.
        tokenizer: for processes, one that can be pickled.
        processes: that tokenize; 1: this one.
    """
    batches = _batches(documents)
    if processes == 1:
        for batch in batches:
            yield from _encode(tokenizer, batch)
        return
    pool = ProcessPoolExecutor(processes, mp_context=_context(), initializer=_start_worker, initargs=(tokenizer,))
    try:
        waiting: deque[Future[list[Encoded]]] = deque()
        for batch in batches:
            waiting.append(pool.submit(_encode_in_worker, batch))
            if len(waiting) > 2 * processes:  # so many texts are in memory, and no more
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _context() -> BaseContext:
    """Return how processes start: forked from one that has imported what takes seconds to import, and nothing else."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    # A Ctrl-C is for this process, which ends the others: they start without. The tracker, which unblocks it, is first.
    resource_tracker.ensure_running()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return context


def _batches(documents: Iterable[SidedDocument]) -> Iterator[list[_Piece]]:
    batch: list[_Piece] = []
    size = 0
    for document in documents:
        starts = True
        for text in cut_pieces(document.chunks, _WHOLE if document.size <= _WHOLE else _PIECE):
            batch.append(_Piece(text, document.is_held_back, starts))
            size, starts = size + len(text), False
            if size >= _BATCH:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _encode(tokenizer: TextTokenizer, batch: Sequence[_Piece]) -> list[Encoded]:
    return [
        _encode_side(tokenizer, pieces, is_held_back)
        for is_held_back in (False, True)
        if (pieces := [piece for piece in batch if piece.is_held_back == is_held_back])
    ]


def _encode_side(tokenizer: TextTokenizer, pieces: Sequence[_Piece], is_held_back: bool) -> Encoded:
    texts = [piece.text for piece in pieces]
    counts: list[NDArray[np.uint32]] | None = None
    if is_held_back and not tokenizer.knows_bytes:
        counted = tokenizer.encode_counted(texts)
        ids, counts = [part.ids for part in counted], [part.byte_counts for part in counted]
    else:
        ids = tokenizer.encode_batch(texts)
    separator = np.array([] if tokenizer.separator is None else [tokenizer.separator], dtype=ids[0].dtype)
    starts = [separator[: piece.starts_document] for piece in pieces]
    return Encoded(
        _joined(starts, ids),
        None if counts is None else _joined([np.zeros(len(start), np.uint32) for start in starts], counts),
        sum(map(len, texts)),
        is_held_back,
    )


_Row = TypeVar("_Row", bound=np.unsignedinteger)


def _joined(before: Sequence[NDArray[_Row]], rows: Sequence[NDArray[_Row]]) -> NDArray[_Row]:
    return np.concatenate([part for pair in zip(before, rows, strict=True) for part in pair])


_worker_tokenizer: TextTokenizer


def _start_worker(tokenizer: TextTokenizer) -> None:
    global _worker_tokenizer
    _worker_tokenizer = tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are as many as there is work for
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process with the one that started it, also where that was killed."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _encode_in_worker(batch: Sequence[_Piece]) -> list[Encoded]:
    return _encode(_worker_tokenizer, batch)
