# mypy: ignore-errors
"""Copies to shared memory: what keeps products from reading them too early, and copies from coming too early.

The only file here with waits, fences and barriers for copies. A copy has landed for its own thread after a wait, and
for all threads after a barrier behind it. Tensor cores read shared memory by a way of their own (the async proxy), and
see what a thread's fence has let through. A copy may set out when all warps' products with what it replaces are done.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared

from zoo.kernels.power.triton.hopper.aggregate import aggregate
from zoo.kernels.power.triton.hopper.rows import SIZE, Rows
from zoo.kernels.power.triton.hopper.side import Side

__all__ = ["commit", "drained", "next_tile", "open_ring", "published", "replaceable"]

barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier  # renamed after Triton 3.6
commit = async_copy.commit_group


@gluon.jit
def _landed(PENDING: gl.constexpr):
    """Wait until products may read what has been copied, but for the last PENDING groups of copies."""
    async_copy.wait_group(PENDING)  # this thread's copies
    barrier()  # every thread's; Triton would put it here by itself
    fence_async_shared()  # for this warp's products


@gluon.jit
def published(PENDING: gl.constexpr):
    """The same for what threads have stored, too."""
    _landed(PENDING)
    barrier()  # a thread's fence lets its own stores through: all come before any warp's products


@gluon.jit
def replaceable():
    """Wait until shared memory may be replaced by copies, or used for something else."""
    barrier()  # each warp has waited for its products, and another's may still have been reading


@gluon.jit
def drained():
    """Wait until no copy is on its way, and none of this shared memory is read."""
    async_copy.wait_group(0)
    barrier()


@gluon.jit
def next_tile(tiles, step):
    """Start to copy the tile that comes STAGES - 1 steps after this one, and wait for this one."""
    STAGES: gl.constexpr = tiles.pool.shape[0]
    replaceable()
    tiles.fetch(step + STAGES - 1)
    _landed(STAGES - 1)
    return tiles.pool.index(step % STAGES)


@aggregate
class Ring:
    """The blocks of tokens that a program's tokens meet, on their way through shared memory, two steps ahead.

    A block is a tile of `others`, of which scores are taken, and one of `values`. First come all partners' full blocks,
    which lie beyond the program's tokens, and then the program's own tokens, of each partner again.
    """

    pool: gl.shared_memory_descriptor  # [2 stages, 64, 64], a block's tiles side by side
    side: Side
    others: Rows
    values: Rows
    full: gl.tensor  # steps
    steps: gl.tensor

    @gluon.jit
    def place(self, step):
        """A step's partner, of those of the state, and its first token."""
        side = self.side
        OWN: gl.constexpr = side.BLOCK // SIZE
        first = side.token + side.BLOCK if side.KEYS else 0
        own = step - self.full
        if side.PARTNERS == 1:  # a constant, if it is 1: without divisions
            return 0, gl.where(own < 0, first + step * SIZE, side.token + own * SIZE)
        else:
            blocks = self.full // side.PARTNERS
            partner = gl.where(own < 0, step // blocks, own // OWN)
            return partner, gl.where(own < 0, first + step % blocks * SIZE, side.token + own % OWN * SIZE)

    @gluon.jit
    def fetch(self, step, stage):
        """Start to copy a step's block."""
        partner, first = self.place(step)
        partner += self.side.first_partner
        self.others.of(partner).copy(self.pool.index(stage * 2), first)
        self.values.of(partner).copy(self.pool.index(stage * 2 + 1), first)
        commit()

    @gluon.jit
    def next(self, step):
        """Wait for this step's block, start to copy the one two steps ahead, and return this one's two tiles."""
        STAGES: gl.constexpr = self.pool.shape[0] // 2
        published(1)  # all but the next step's
        # Products in flight read the last step's block, at most. Now every warp is done with those of two steps ago,
        # whose block is replaced.
        gl.static_assert(STAGES >= 4)
        self.fetch(gl.minimum(step + 2, self.steps - 1), (step + 2) % STAGES)
        return self.pool.index(step % STAGES * 2), self.pool.index(step % STAGES * 2 + 1)


@gluon.jit
def open_ring(tiles, side, others, values):
    """Start to copy the first two blocks, through memory that states' tiles have passed through."""
    STAGES: gl.constexpr = tiles.shape[0] * tiles.shape[1] * tiles.shape[2] // (2 * SIZE * SIZE)
    pool = tiles._reinterpret(gl.bfloat16, [2 * STAGES, SIZE, SIZE], tiles.layout)
    beyond = gl.cdiv(side.tokens - side.token - side.BLOCK, SIZE) if side.KEYS else side.token // SIZE
    # The loop over them runs at least once, so that products may stay in flight.
    full = gl.maximum(beyond, 1) * side.PARTNERS
    ring = Ring(pool, side, others, values, full, full + side.BLOCK // SIZE * side.PARTNERS)
    for step in gl.static_range(2):
        ring.fetch(step, step)
    return ring
