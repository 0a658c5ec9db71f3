"""The Triton kernels without a GPU, run as Python by the interpreter: small problems, all that they can do."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.kernels.delta.triton.plan import Sizes
from zoo.kernels.errors import InputError
from zoo.kernels.rwkv7 import rwkv7
from zoo.kernels.rwkv7.call import Incoming, Options
from zoo.kernels.rwkv7.triton.plan import SIZES, using

from ...interpreted_bfloat16 import bfloat16_as_on_a_gpu
from ..plain import run_in_chunks
from ..problems import DECAYS, TOKENS, Problem, check_same, mix, random_problem, run, scale

FLOOR = -0.607
SMALL = Sizes(
    chunk=16, state_block=16, output_block=16, value_block=16, key_block=16, key_values=16, group=2
)  # chunks in groups, and values and channels in blocks, with few tokens


@pytest.fixture(autouse=True)
def _small() -> Iterator[None]:
    with using(SMALL):
        yield


def check_error_law(problem: Problem, **options: object) -> None:
    """Assert `err(ours) <= 1.5 err(recurrent in the same dtype) + digits`, in L2, against the float64 recurrence."""
    exact, ours, plain = (
        run(problem.double(), "recurrent"),
        run(problem, "triton", **options),
        run(problem, "recurrent"),
    )
    for name, reference in exact.items():
        error, allowed = (float((x[name].double() - reference).norm()) for x in (ours, plain))
        tiny = 1e-5 * scale(problem, name, reference)
        assert error <= 1.5 * allowed + tiny, f"{name}: error {error:.2e}, plain {allowed:.2e}, digits {tiny:.2e}"


# A program of the interpreter costs milliseconds.
@pytest.mark.parametrize("decays", DECAYS)
def test_error_law_whatever_the_decays(decays: str) -> None:
    check_error_law(random_problem(1, 37, 1, 16, decays))


@pytest.mark.parametrize("T", [1, 16, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_error_law_with_bounded_decays(T: int, dtype: torch.dtype) -> None:
    check_error_law(random_problem(2, T, 1, 16, dtype=dtype), log_w_floor=FLOOR)


@pytest.mark.parametrize(("T", "floor"), [(1, FLOOR), (40, FLOOR), (40, -torch.inf)])
def test_error_law_in_bfloat16(T: int, floor: float) -> None:
    """Beside plain PyTorch in chunks."""
    problem = random_problem(1, T, 1, 32, dtype=torch.bfloat16)
    with using(SIZES), bfloat16_as_on_a_gpu():
        ours = run(problem, "triton", log_w_floor=floor)
    exact, plain = run(problem.double(), "recurrent"), run_in_chunks(problem)
    for name, reference in exact.items():
        error, allowed = (float((x[name].double() - reference).norm()) for x in (ours, plain))
        tiny = 1e-5 * scale(problem, name, reference)
        assert error <= 1.5 * allowed + tiny, f"{name}: error {error:.2e}, plain {allowed:.2e}, digits {tiny:.2e}"


@pytest.mark.parametrize("floor", [-1.3, -4.0])
def test_error_law_with_bounds_of_parts_of_a_chunk(floor: float) -> None:
    """Of 32 tokens, and of 8, above which chunks are halved."""
    problem = random_problem(1, 40, 1, 16)
    problem = replace(problem, log_w=problem.log_w * (floor / FLOOR))
    with using(SMALL._replace(chunk=32)):
        check_error_law(problem, log_w_floor=floor)


def test_blocks_of_channels_and_values_add_up() -> None:
    check_error_law(random_problem(1, 20, 1, 32), log_w_floor=FLOOR)


@pytest.mark.parametrize("floor", [FLOOR, -torch.inf])
def test_resets_and_lengths(floor: float) -> None:
    """Packed documents are a sequence whose documents' first tokens forget."""
    resets = torch.arange(40).expand(2, -1) % 13 == 5
    problem = replace(random_problem(2, 40, 1, 16), resets=resets, lengths=torch.tensor([40, 21]))
    check_same(problem, run(problem, "triton", log_w_floor=floor), run(problem, "recurrent"))


def test_a_packed_document_is_as_if_alone() -> None:
    problem = random_problem(1, 50, 1, 16)
    resets = torch.zeros(1, 50, dtype=torch.bool)
    resets[:, 23] = True
    do = torch.cat((torch.zeros_like(problem.do[:, :23]), problem.do[:, 23:]), 1)
    found = run(replace(problem, resets=resets, do=do), "triton", log_w_floor=FLOOR)
    alone = replace(problem.tokens(23, 50), S=None)
    expected = run(alone, "triton", log_w_floor=FLOOR)
    check_same(
        alone, {name: x if name == "S_out" else x[:, 23:] for name, x in found.items() if name != "dS"}, expected
    )
    assert not found["dS"].any()


@pytest.mark.parametrize("N", [5, 20])
def test_widths_are_filled_up(N: int) -> None:
    check_error_law(random_problem(1, 18, 2, N), log_w_floor=FLOOR)


@pytest.mark.parametrize("with_state", [True, False])
@pytest.mark.parametrize("used", ["do", "dS"])
def test_states_and_results_that_are_not_there(with_state: bool, used: str) -> None:
    problem = replace(random_problem(1, 20, 1, 16), **{"dS" if used == "do" else "do": None})
    problem = problem if with_state else replace(problem, S=None)
    check_same(problem, run(problem, "triton"), run(problem, "recurrent"))


@pytest.mark.parametrize("t", [1, 16, 50])
def test_split_anywhere(t: int) -> None:
    problem = random_problem(1, 70, 1, 16)
    whole, state = mix(problem, "triton", log_w_floor=FLOOR)
    first, between = mix(problem.tokens(0, t), "triton", log_w_floor=FLOOR)
    last, after = mix(replace(problem.tokens(t, 70), S=between), "triton", log_w_floor=FLOOR)
    torch.testing.assert_close(torch.cat((first, last), 1), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(after, state, rtol=1e-5, atol=1e-5)


def test_no_tokens_keep_the_state() -> None:
    problem = random_problem(2, 0, 1, 16)
    found = run(problem, "triton")
    assert torch.equal(found["S_out"], problem.S)
    assert torch.equal(found["dS"], problem.dS)


def test_two_runs_give_the_same_bits_in_any_layout() -> None:
    problem = random_problem(1, 20, 2, 16)
    heads_first = problem.map(lambda x: x.transpose(1, 2).contiguous().transpose(1, 2))
    first, second = run(problem, "triton"), run(heads_first, "triton")
    assert all(torch.equal(x, second[name]) for name, x in first.items())


def test_nothing_is_kept_without_gradients() -> None:
    problem = random_problem(1, 20, 1, 16)
    tokens = [getattr(problem, name) for name in TOKENS]
    outputs = torch.ops.zoo.rwkv7(*tokens, None, *Options(True, 0, save=False))
    assert [x.numel() for x in outputs[2:]] == [0] * 8


@pytest.mark.parametrize("with_state", [True, False])
def test_opcheck(with_state: bool) -> None:
    problem = random_problem(1, 5, 1, 16)
    tokens = [getattr(problem, name).requires_grad_() for name in TOKENS]
    state, options = problem.S if with_state else None, Options(True, 0, base=32)
    torch.library.opcheck(torch.ops.zoo.rwkv7, (*tokens, state, *options))
    tokens = [x.detach() for x in tokens]
    o, S, *kept = torch.ops.zoo.rwkv7(*tokens, state, *options)
    incoming = Incoming(torch.ones_like(o), torch.ones_like(S))
    torch.library.opcheck(torch.ops.zoo.rwkv7_backward, (*incoming, *tokens, state, *kept, *options))


def test_compiles_whole_with_what_surrounds_it() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(16, 6 * 16)

        def forward(self, x: Tensor) -> Tensor:
            r, w, k, v, kappa, a = (y.unsqueeze(2) for y in self.project(x).chunk(6, -1))
            kappa = F.normalize(kappa, dim=-1)
            return rwkv7(r, FLOOR * w.sigmoid(), k, v, kappa, a.sigmoid(), log_w_floor=FLOOR, impl="triton").o.flatten(
                2
            )

    layer = Layer()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for T in (10, 20):
        x = torch.randn(1, T, 16)
        results = [(o, *torch.autograd.grad(o.sum(), list(layer.parameters()))) for o in (compiled(x), layer(x))]
        torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"N": 160}, r"^r: impl='triton' takes heads of up to 128 channels, was 160$"),
     ({"dtype": torch.float64}, r"^r: impl='triton' takes bfloat16, float16 or float32, was torch.float64$")],
)  # fmt: skip
def test_what_the_kernels_do_not_take_is_refused_by_name(change: dict[str, object], message: str) -> None:
    problem = random_problem(1, 3, 1, **{"N": 8, **change})
    with pytest.raises(InputError, match=message):
        run(problem, "triton")
