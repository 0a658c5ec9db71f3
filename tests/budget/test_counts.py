"""Counts against torch.utils.flop_counter, on real models at tiny widths.

What torch's counter does not count as we do is counted again, so that it does, and not left out:

- `scaled_dot_product_attention`: its fused kernel on the CPU does not count at all, so the plain one runs; that counts
  the full square of queries and keys. A query's own keys are counted by taking the tokens one at a time, each against a
  cache with room for just those up to it.
- a short convolution written as sums of shifted inputs, all pointwise: counted as `conv1d` with a group a channel.
"""

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from zoo.blocks.cache import KeyValueState
from zoo.blocks.convolution import CausalConvolution
from zoo.blocks.gate import RetentionGate
from zoo.blocks.mixer import Mixer
from zoo.budget import budgets, measure, weight_flops
from zoo.budget.layers import layer_costs
from zoo.builder import build, configure, shrink
from zoo.errors import InputError
from zoo.kernels.power import Heads, forward_flops, state_size
from zoo.kernels.power.call import Inputs
from zoo.kernels.power.chunked import resolve_chunk_size
from zoo.kernels.power.expansion import coefficients, expand
from zoo.kernels.power.reference import quadratic
from zoo.mixers import mixers
from zoo.models.decoder import Decoder
from zoo.recipe import Recipe, available_recipes, load_recipe
from zoo.states import state_bytes

T = 256  # two chunks of power attention at these widths, so that its state is used


def models() -> list[tuple[str, Recipe]]:
    """Every recipe as it is, and with each mixer in every layer."""
    own = [(name, shrink(load_recipe(name))) for name in available_recipes()]
    replaced = [
        (f"{name}-{mixer}", shrink(configure(name, mixer=mixer, overrides=["hybrid=null"])))
        for name in available_recipes()
        for mixer in mixers
    ]
    return own + replaced


def counted(run: object, *arguments: object) -> int:
    """Torch's count of the FLOPs of `run`."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run(*arguments)
    return counter.get_total_flops()


def torch_flops(model: Decoder) -> int:
    """Torch's count for one sequence, with a query's own keys and with convolutions."""
    total = counted(model, torch.randint(model.config.vocab_size, (1, T)))
    for module in model.modules():
        if isinstance(module, CausalConvolution):
            total += convolution_flops(*module.weight.shape)
        if isinstance(module, Mixer) and isinstance(module.init_state(1, max_len=1).layer, KeyValueState):
            x = torch.randn(1, T, model.config.width)
            total += causal_flops(module, x) - counted(module, x)
    return total


_causal: dict[str, int] = {}


def causal_flops(mixer: Mixer, x: Tensor) -> int:
    """Torch's count token by token, each with a cache of just the tokens up to it, or of the whole window."""
    key = f"{mixer} {getattr(mixer, 'window', None)}"  # its class and the sizes of its layers and norms
    if key not in _causal:
        total = 0
        for t in range(T):
            state = mixer.init_state(1, max_len=t + 1)
            state.position.fill_(t)
            total += counted(mixer.step, x[:, t], state)
        _causal[key] = total
    return _causal[key]


@cache
def convolution_flops(channels: int, width: int) -> int:
    x, weight = torch.randn(1, channels, T + width - 1), torch.randn(channels, 1, width)
    return counted(lambda: F.conv1d(x, weight, groups=channels))


@pytest.mark.parametrize("recipe", [pytest.param(recipe, id=name) for name, recipe in models()])
def test_torch_counts_the_same(recipe: Recipe) -> None:
    model = build(recipe)
    budget = measure(model, T)
    assert T * budget.forward_flops == model.flops(T)
    assert torch_flops(model) == pytest.approx(T * budget.forward_flops, rel=0.02)
    (same,) = budgets(recipe, [T])
    assert same == budget
    assert budget.state_bytes == state_bytes(model.init_state(1, max_len=T))


@pytest.mark.parametrize("mixer", mixers)
def test_torch_counts_linear_layers_the_same(mixer: str) -> None:
    model = build(shrink(configure("llama-360m", mixer=mixer)))
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear | RetentionGate)}
    with torch.no_grad(), FlopCounterMode(display=False, depth=99) as counter:
        model(torch.randint(257, (1, T)))
    products = (torch.ops.aten.mm, torch.ops.aten.addmm)
    counts = {name: sum(flops.get(op, 0) for op in products) for name, flops in counter.get_flop_counts().items()}
    head = T * 2 * model.token_embedding.weight.numel()
    assert sum(counts.get(f"Decoder.{name}", 0) for name in linear) + head == T * weight_flops(model)


@pytest.mark.parametrize("mixer", mixers)
def test_training_is_three_forward_passes(mixer: str) -> None:
    model = build(shrink(configure("tiny", mixer=mixer)))
    tokens = torch.randint(257, (1, T))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens).logits.sum().backward()
    assert counter.get_total_flops() == pytest.approx(3 * counted(model, tokens), rel=0.02)
    budget = measure(model, T)
    assert budget.training_flops == 3 * (budget.weight_flops + budget.state_flops)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_power_attention_counts_as_the_products_that_define_it(p: int) -> None:
    """The op tells torch's counter a formula of its own; here torch counts the products that define it."""
    K, tokens = 8, 512
    q, k, v = torch.randn(3, tokens, K, dtype=torch.float64)
    ones = torch.ones(tokens, 1, dtype=torch.float64)
    chunk = resolve_chunk_size(0, tokens, K, p)
    y = torch.zeros(tokens, K + 1, dtype=torch.float64)

    def run() -> None:
        state = torch.zeros(state_size(K, p), K + 1, dtype=torch.float64)
        for start in range(0, tokens, chunk):
            rows = slice(start, start + chunk)
            monomials = expand(q[rows], p) * coefficients(K, p, q.dtype, q.device)
            y[rows] = monomials @ state
            for t in range(start, start + chunk):
                seen = slice(start, t + 1)
                weights = (q[t : t + 1] @ k[seen].mT) ** p
                y[t, :K] += (weights @ v[seen])[0]
                y[t, K] += weights.sum()
            state += expand(k[rows], p).mT @ torch.cat((v, ones), 1)[rows]

    assert chunk < tokens
    assert counted(run) == forward_flops(1, tokens, Heads(1, 1, 1), K, K, p)
    one = [x[None, :, None] for x in (q, k, v)]
    expected, _ = quadratic(Inputs(*one), p=p, scale=1.0, normalize=False)
    torch.testing.assert_close(y[:, :K], expected[0, :, 0])


@pytest.mark.parametrize("mixer", mixers)
def test_costs_by_layers_are_those_of_the_model(mixer: str) -> None:
    for name in ("tiny", "llama-360m"):
        recipe = configure(name, mixer=mixer)
        costs = layer_costs(recipe.model, recipe.mixer, 1_000, torch.bfloat16)
        for layers in (1, 2, 5):
            model = build(recipe.override([f"model.layers={layers}"]), device="meta")
            budget = measure(model, 1_000, torch.bfloat16)
            assert costs.parameters(layers) == model.num_parameters()
            assert costs.budget(layers).weight_flops == budget.weight_flops
            assert costs.budget(layers).state_bytes == budget.state_bytes
            assert costs.budget(layers).state_flops == pytest.approx(budget.state_flops)


def test_states_that_the_op_refuses_are_counted() -> None:
    (budget,) = budgets(configure("gpt2-124m-rotary", mixer="power", p=4), [65_536])
    assert budget.state_bytes > 12 * 12 * state_size(64, 4) * 65 * 4


@pytest.mark.parametrize("contexts", [[], [0], [1024, -1], [10**20]])
def test_contexts_are_numbers_of_tokens(contexts: list[int]) -> None:
    with pytest.raises(InputError, match="contexts: expected numbers of tokens from 1 to "):
        budgets(load_recipe("tiny"), contexts)
