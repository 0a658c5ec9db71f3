"""Kernels for Hopper's warp-group matrix products, in Gluon, for bfloat16 and p = 2.

What a program owns. 32 tokens a warp, so 128, of one head of one chunk, in two halves: while one half's products are in
flight, the other's results are scaled and added. It is alone with its results: no two programs add to one place. Two
programs of 4 warps share a multiprocessor, which gives a thread 255 registers and a program 113 KB of shared memory.
`sums` is cut otherwise: a program of 8 warps owns 512 rows of a state by 64 values, and sees all tokens of the chunk.

Shared memory, by stage:

| memory | the state's part | the chunk's part |
|---|---|---|
| tiles, 2 x TRIPS x 64 x 64 | the state's tiles, two stages | blocks of others and values, a ring of at least four |
| x tile, 128 x K | x, for the normaliser | x, for scores |
| scalars, K x 128 | x by channels | |
| z, K x K | the normaliser, once | |

The pipeline. Copies go from global to shared memory by themselves (cp.async), in groups, and `ring.py` alone says when
products may read and copies may replace what is there. The state's tiles are fetched one step ahead, the chunk's blocks
two: a step waits for its own, starts the copy of the one two steps ahead, and then its products.

ptxas keeps products in flight only where it sees that nothing else touches their accumulators; otherwise it waits for
each, at twice the time, and says so ("Potential Performance Loss", which a test looks for). So:

- A product starts in registers that have just been read; a wait after the reading, with what was read and what came of
  it among its dependencies, keeps the reading from being moved behind the start.
- Where a loop ends nothing is in flight whose result is read there. Loops are known to run at least once.
- Registers suffice: `budget.yaml` beside the tests holds them, and what is spilled.

Words:

accumulator  registers that a product fills. A half's `result`, float32, is what its products add up to.
decay        what is left of a token at a later one, at most 1: 2 to the difference of their cumulative log gates.
delta        do . o of a query over its denominator: what normalising takes from each weight's gradient.
own          beside tokens' x, what their gradients are taken of: do of queries, values of keys.
partner      of a head, one of those on the other side that meet it.
q_dot_dq     the product of x with its gradient over 2, a sum over pairs in the chunk, and one over the state's part.
stage        one of the places in shared memory that take turns.
tile         what products take at a time: 64 tokens, or a state's rows of a few outer channels.
"""
