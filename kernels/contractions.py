"""What contractions cost, counted by opt_einsum: a multiply-add counts as two."""

from functools import cache

import opt_einsum

__all__ = ["contraction_flops"]


@cache
def contraction_flops(expression: str, *shapes: tuple[int, ...]) -> int:
    """FLOPs of one einsum expression; a sum over an index costs one addition an element."""
    return int(opt_einsum.contract_path(expression, *shapes, shapes=True)[1].opt_cost)
