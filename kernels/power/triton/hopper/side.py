# mypy: ignore-errors
"""The two sides of a chunk's pairs of tokens: queries, and the keys that are not later.

A program's tokens `here` are on one side, and meet blocks of 64 `there`, on the other: queries meet earlier keys, keys
meet later queries. A full block lies beyond all of the program's tokens, and its decay to the one of them that is
nearest to it is a factor of its own, so that pairs need no exponential. The blocks of the program's own tokens come
last, and take the decay of each pair.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from zoo.kernels.power.triton.hopper.aggregate import Value, aggregate

__all__ = ["Side", "nearest_gates"]


@gluon.jit
def _decay(later, earlier):
    """What is left, from cumulative log gates; 1 where `later` is in fact earlier, which callers mask."""
    return gl.exp2(gl.minimum(later - earlier, 0.0))


@gluon.jit
def nearest_gates(gates, token, tokens, BLOCK: gl.constexpr, KEYS: gl.constexpr, GATED: gl.constexpr):
    """The cumulative log gate of a program's token that is nearest to full blocks: keys' last one, queries' first."""
    return gl.load(gates + (gl.minimum(token + BLOCK, tokens) - 1 if KEYS else token)) if GATED else 0.0


@aggregate
class Side:
    """A program's BLOCK tokens, on the keys' side or the queries', and what PARTNERS heads there have to do with them.

    What is per token lies in rows of C numbers; a query's weight is 0 beyond the chunk's end.
    """

    token: gl.tensor  # the program's first, from the chunk's start on
    tokens: gl.tensor  # of the chunk
    C: Value
    gates: gl.tensor  # pointer, cumulative log gates of the state
    nearest: Value
    weights: gl.tensor  # pointer, the queries' factors, if these are keys of each partner
    first_partner: gl.tensor  # of all heads there
    PARTNERS: Value
    BLOCK: gl.constexpr
    KEYS: gl.constexpr
    GATED: gl.constexpr

    @gluon.jit
    def to_state(self):
        """The decay between the nearest token and the state, before the chunk for queries, behind it for keys."""
        return _decay(gl.load(self.gates + self.C - 1), self.nearest) if self.KEYS else gl.exp2(self.nearest)

    @gluon.jit
    def to_nearest(self, gates):
        """The decay between tokens here, by their cumulative log gates, and the nearest one."""
        return _decay(self.nearest, gates) if self.KEYS else _decay(gates, self.nearest)

    @gluon.jit
    def position(self, partner, there, OWN: gl.constexpr):
        """Where tokens there stand in the partners' rows of C; of a full block that does not exist, anywhere."""
        return partner * self.C + (there if OWN else gl.minimum(there, self.C - 1))

    @gluon.jit
    def weight(self, at, there, OWN: gl.constexpr):
        """The factor of tokens there, zero of those that do not exist."""
        # There is always a first full block, even where none of its tokens is beyond those here.
        factor = gl.where(there < (self.tokens if OWN or self.KEYS else self.token), 1.0, 0.0)
        if self.KEYS:
            factor *= gl.load(self.weights + at)
        return factor

    @gluon.jit
    def beyond(self, there, factor):
        """The factor of tokens in a full block, with their decay to the nearest token here."""
        if self.GATED:
            gates = gl.load(self.gates + gl.minimum(there, self.C - 1))
            factor *= _decay(gates, self.nearest) if self.KEYS else _decay(self.nearest, gates)
        return factor

    @gluon.jit
    def causal(self, here, there, factor):
        """The factor of tokens there in each pair with one here: zero where the key is later."""
        causal = here[:, None] <= there[None, :] if self.KEYS else here[:, None] >= there[None, :]
        return gl.where(causal, factor[None, :], 0.0)

    @gluon.jit
    def pair_decay(self, gates_here, gates_there):
        """The decay between each pair of tokens, by their cumulative log gates."""
        here, there = gates_here[:, None], gates_there[None, :]
        return _decay(there, here) if self.KEYS else _decay(here, there)
