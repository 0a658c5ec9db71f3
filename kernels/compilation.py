"""What an op tells the compiler about its own graphs."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.fx import traceback

__all__ = ["in_backward_graph"]

_TAG = "partitioner_tag"  # where AOTAutograd looks for a node's place


@contextmanager
def in_backward_graph() -> Iterator[None]:
    """Have the compiler compute in the backward pass what is traced within.

    Otherwise it moves what depends on no incoming gradient, such as transposed queries, into the forward pass and keeps
    it from there.
    """
    if not traceback.has_preserved_node_meta():  # nothing is traced
        yield
        return
    before = traceback.current_meta.get(_TAG)
    traceback.current_meta[_TAG] = "must_be_in_backward"
    try:
        yield
    finally:
        traceback.current_meta[_TAG] = before
