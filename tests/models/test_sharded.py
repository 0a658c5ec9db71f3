"""A model that its user shards by hand with FSDP2, in a group of one process."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

import zoo
from zoo.builder import build, configure, shrink
from zoo.errors import InputError
from zoo.models import Decoder

TOKENS = torch.randint(0, 257, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def pair() -> Iterator[tuple[Decoder, Decoder]]:
    """A model, and the same sharded, layer by layer and as a whole."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        plain = build(shrink(configure("tiny", mixer="gated-power")))
        sharded = build(shrink(configure("tiny", mixer="gated-power")))
        sharded.load_state_dict(plain.state_dict())
        mesh = init_device_mesh("cpu", (1,))
        for block in sharded.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        yield plain, sharded
    finally:
        dist.destroy_process_group()


def test_what_the_sharding_was_not_told_of_says_what_to_tell_it(pair: tuple[Decoder, Decoder]) -> None:
    plain, sharded = pair
    torch.testing.assert_close(sharded(TOKENS).logits, plain(TOKENS).logits)
    sharded.reshard()
    for call in (
        lambda: sharded.loss(TOKENS, TOKENS),
        lambda: sharded.prefill(TOKENS, sharded.init_state(2), torch.tensor([9, 4])),
        lambda: sharded.step(TOKENS[:, 0], sharded.init_state(2)),
        lambda: zoo.generate(sharded, "def", max_new_tokens=2),
    ):
        with pytest.raises(InputError, match=r"^model: .*register_fsdp_forward_method\(model, .*\)"):
            call()


def test_told_of_its_methods_a_sharded_model_is_the_same(pair: tuple[Decoder, Decoder]) -> None:
    plain, sharded = pair
    for method in ("loss", "prefill", "step"):
        register_fsdp_forward_method(sharded, method)
    loss = sharded.loss(TOKENS, TOKENS)
    torch.testing.assert_close(loss, plain.loss(TOKENS, TOKENS))
    loss.backward()
    assert all(parameter.grad is not None for parameter in sharded.parameters())
    assert zoo.generate(sharded.eval(), "def", max_new_tokens=5) == zoo.generate(plain.eval(), "def", max_new_tokens=5)
