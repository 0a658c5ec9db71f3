"""The Triton kernels without a GPU, run as Python by the interpreter: small problems, all that they can do."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from zoo.kernels.delta import delta_attention
from zoo.kernels.delta.call import Incoming, Inputs, Options
from zoo.kernels.delta.triton import plan
from zoo.kernels.delta.triton.plan import Plan, Sizes, count_groups, group_length, make_plan, most_groups, using
from zoo.kernels.errors import InputError

from ...interpreted_bfloat16 import bfloat16_as_on_a_gpu
from ...interpreted_tensor_cores import tensor_cores_as_on_a_gpu
from ..plain import run_in_chunks
from ..problems import Problem, attend, check_error_law, check_same, problems, random_problem, run

SMALL = Sizes(
    chunk=16, state_block=16, output_block=16, value_block=16, key_block=16, key_values=16, group=2
)  # chunks in groups, and values and channels in blocks, with few tokens


@pytest.fixture(autouse=True)
def _small() -> Iterator[None]:
    with using(SMALL):
        yield


# A program of the interpreter costs milliseconds.
@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("rates", [("none",), ("half", "any", "near two", "zeros", "ones")], ids=["plain", "delta"])
def test_error_law(channels: bool, rates: tuple[str, ...]) -> None:
    examples = 40 if settings().max_examples > 100 else 2

    @settings(max_examples=examples)
    @given(
        problems(
            dtypes=(torch.float32, torch.float16), powers=(1,), batches=1, channels=channels, rates=rates, shortest=1,
            longest=36,
        )
    )  # fmt: skip
    def check(problem: Problem) -> None:
        with using(SMALL._replace(group=0)):
            check_error_law(problem, "triton")

    check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_error_law_after_channels_that_forgot(dtype: torch.dtype) -> None:
    """A sum of gates is large after one of -inf, which must not take digits of decays between later tokens."""
    problem = random_problem(16, gates="resets", channels=True, shape=(1, 2, 32, 16), dtype=dtype)
    problem.log_g[:, :8] = -torch.inf
    problem.log_g[:, 8:] = -0.01
    check_error_law(problem, "triton")


@pytest.mark.parametrize(("T", "gates"), [(1, "mild"), (20, "mild"), (40, "none")])
def test_error_law_in_bfloat16(T: int, gates: str) -> None:
    """Beside the textbook form; of one token's gate there is little but a state times its gradient."""
    problem = random_problem(T, gates=gates, shape=(1, 1, 32, 32), dtype=torch.bfloat16)
    with using(Sizes()), bfloat16_as_on_a_gpu():
        ours = run(problem, "triton")
    exact, plain = run(problem.double(), "recurrent"), run_in_chunks(problem)
    for name, reference in exact.items():
        error, allowed = (float((x[name].double() - reference).norm()) for x in (ours, plain))
        assert error <= 1.5 * allowed + 1e-5 * float(reference.norm()), f"{name}: {error:.2e}, plain {allowed:.2e}"


@pytest.mark.parametrize(
    ("dtype", "rates", "T", "H"),
    [(torch.float16, "half", 200, 1), (torch.float16, "any", 200, 1), (torch.float32, "near two", 200, 8),
     (torch.bfloat16, "half", 1000, 1), (torch.bfloat16, "near two", 200, 8)],
)  # fmt: skip
def test_error_law_of_a_key_that_repeats(
    dtype: torch.dtype, rates: str, T: int, H: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a GPU's digits: what a rounded map writes beside the key stays there, and what products cut off adds up.

    Near two nothing decays: roundings add up as they fall, and a head's error is 0.2 to 4 times that of the plain form
    by chance alone (0.6 over 40 of them). So there the law is about several heads together.
    """
    monkeypatch.setattr(plan, "INTERPRETED", False)  # which precision is asked for
    problem = random_problem(T, gates="none", rates=rates, shape=(1, H, 32, 32), dtype=dtype)
    problem = replace(problem, k=problem.k[:, :1].expand(problem.k.shape))
    with using(Sizes(output_warps=2)), bfloat16_as_on_a_gpu(), tensor_cores_as_on_a_gpu():
        ours = run(problem, "triton")
    exact, plain = run(problem.double(), "recurrent"), run_in_chunks(problem)
    for name, reference in exact.items():
        error, allowed = (float((x[name].double() - reference).norm()) for x in (ours, plain))
        assert error <= 1.5 * allowed, f"{name}: {error:.2e}, plain {allowed:.2e}"


CASES = [("none", False, "any"), ("mild", False, "near two"), ("resets", True, "any"), ("mixed", False, "none")]


@pytest.mark.parametrize(("gates", "channels", "rates"), CASES)
def test_groups_of_chunks_are_composed(gates: str, channels: bool, rates: str) -> None:
    """By threes, over both rows of a batch."""
    problem = random_problem(50, gates=gates, channels=channels, rates=rates, shape=(2, 1, 16, 16))
    with using(SMALL._replace(group=3)):
        check_same(problem, run(problem, "triton"), run(problem, "recurrent"))


@pytest.mark.parametrize(("gates", "channels", "rates"), CASES[1:3])
def test_packed_sequences_equal_separate_calls(gates: str, channels: bool, rates: str) -> None:
    """Among them an empty one, which keeps its state, and gives its gradient back."""
    ends = [0, 0, 33, 34, 34, 80]
    problem = random_problem(80, gates=gates, channels=channels, rates=rates, shape=(5, 1, 16, 16))
    problem = replace(problem.row(0), S=problem.S, dS=problem.dS)
    packed = run(problem, "triton", cu_seqlens=torch.tensor(ends, dtype=torch.int32))
    for i, (start, stop) in enumerate(pairwise(ends)):
        alone = replace(problem.tokens(start, stop), S=problem.S[i : i + 1], dS=problem.dS[i : i + 1])
        expected = run(alone, "triton" if stop > start else "chunked")
        found = {name: x[i : i + 1] if "S" in name else x[:, start:stop] for name, x in packed.items()}
        check_same(alone, found, expected)


@pytest.mark.parametrize("channels", [False, True])
def test_shared_heads(channels: bool) -> None:
    problem = random_problem(20, channels=channels, shape=(1, 2, 16, 16))
    shared = replace(problem, q=problem.q[:, :, :1], k=problem.k[:, :, :1])
    check_same(shared, run(shared, "triton"), run(shared, "recurrent"))


@pytest.mark.parametrize("t", [1, 16, 50])
def test_split_anywhere(t: int) -> None:
    problem = random_problem(70)
    whole, state = attend(problem, "triton")
    first, between = attend(problem.tokens(0, t), "triton")
    last, after = attend(replace(problem.tokens(t, 70), S=between), "triton")
    torch.testing.assert_close(torch.cat((first, last), 1), whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(after, state, rtol=1e-5, atol=1e-5)


def test_lengths_and_resets() -> None:
    problem = random_problem(40, shape=(2, 1, 16, 16))
    options = {"lengths": torch.tensor([40, 21]), "resets": torch.arange(40).expand(2, -1) % 13 == 5}
    check_same(problem, run(problem, "triton", **options), run(problem, "chunked", **options))


def test_two_runs_give_the_same_bits() -> None:
    problem = random_problem(20)
    first, second = run(problem, "triton"), run(problem, "triton")
    assert all(torch.equal(x, second[name]) for name, x in first.items())


def test_gates_that_forget_have_no_gradient() -> None:
    for channels in (False, True):
        problem = random_problem(20, gates="resets", channels=channels)
        found = run(problem, "triton")["dlog_g"]
        assert not found[problem.log_g == -torch.inf].any()


def test_nothing_is_kept_without_gradients() -> None:
    problem = random_problem(20)
    inputs, options = Inputs(problem.q, problem.k, problem.v), Options(1, 1.0, use_triton=True)
    outputs = torch.ops.zoo.delta_attention(*inputs, *options)
    assert [x.numel() for x in outputs[1:]] == [0] * 3


def _plan(B: int, T: int, H: int, width: int = 64, *, packed: bool = False) -> Plan:
    with torch.device("meta"):
        q = torch.empty(B, T, H, width)
        inputs = Inputs(q, q, q, cu_seqlens=torch.empty(4, dtype=torch.int32) if packed else None)
    return make_plan(inputs, Options(1, 1.0))


def test_the_longest_way_is_thrice_the_root_of_the_chunks() -> None:
    with using(Sizes(chunk=64)):
        assert group_length(_plan(1, 65536, 8)) == 32  # of 1,024
        assert group_length(_plan(1, 65536, 8, packed=True)) == 32  # of 1,027
        assert group_length(_plan(16, 4096, 8)) == 64  # rows and heads are enough
        assert group_length(_plan(1, 1000, 8)) == 16


@given(
    B=st.integers(1, 40), T=st.integers(1, 1 << 21), H=st.integers(1, 600), width=st.sampled_from([16, 64, 128]),
    packed=st.booleans(), group=st.integers(0, 40),
)  # fmt: skip
def test_there_is_room_for_all_groups(B: int, T: int, H: int, width: int, packed: bool, group: int) -> None:
    with using(Sizes(group=group)):
        made = _plan(1 if packed else B, T, H, width, packed=packed)
        assert count_groups(made) <= most_groups(made)


@pytest.mark.parametrize(("channels", "rates"), [(False, "half"), (True, "none")])
def test_opcheck(channels: bool, rates: str) -> None:
    problem = random_problem(5, channels=channels, rates=rates, shape=(1, 2, 16, 16))
    tokens = [x.requires_grad_() for x in (problem.q[:, :, :1], problem.k, problem.v, problem.log_g)]
    options = Options(1, 0.5, return_state=True, save_errors=True, use_triton=True)
    inputs = Inputs(*tokens, problem.beta, problem.S)
    torch.library.opcheck(torch.ops.zoo.delta_attention, (*inputs, *options))
    inputs = Inputs(*(None if x is None else x.detach() for x in inputs))
    o, S, *saved = torch.ops.zoo.delta_attention(*inputs, *options)
    incoming = Incoming(torch.ones_like(o), torch.ones_like(S))
    torch.library.opcheck(torch.ops.zoo.delta_attention_backward, (*incoming, *inputs, *saved, *options))


def test_compiles_whole_with_what_surrounds_it() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(16, 3 * 16 + 2)

        def forward(self, x: Tensor) -> Tensor:
            *heads, log_g, beta = self.project(x).split((16, 16, 16, 1, 1), dim=-1)
            q, k, v = (y.unsqueeze(2) for y in heads)
            k = F.normalize(k, dim=-1)
            return delta_attention(q, k, v, F.logsigmoid(log_g), beta.sigmoid(), impl="triton").o.flatten(2)

    layer = Layer()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for T in (10, 20):
        x = torch.randn(1, T, 16)
        results = [(o, *torch.autograd.grad(o.sum(), list(layer.parameters()))) for o in (compiled(x), layer(x))]
        torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"q": torch.zeros(1, 3, 1, 160), "k": torch.zeros(1, 3, 1, 160)}, "k: impl='triton' takes widths up to 128"),
     ({"v": torch.zeros(1, 3, 1, 129)}, "v: impl='triton' takes widths up to 128, was 129"),
     ({"p": 2}, "q: impl='triton' takes widths 16, 32, 64 and 128, was 8"),
     ({name: torch.zeros(1, 3, 1, 16) for name in "qkv"} | {"p": 5}, "p: impl='triton' takes 1 to 4, was 5")],
)  # fmt: skip
def test_what_the_kernels_do_not_take_is_refused_by_name(change: dict[str, object], message: str) -> None:
    arguments = {name: torch.zeros(1, 3, 1, 8) for name in ("q", "k", "v")} | change
    with pytest.raises(InputError, match=f"^{message}"):
        delta_attention(**arguments, impl="triton")


def test_float64_is_refused_by_name() -> None:
    x = torch.zeros(1, 3, 1, 8, dtype=torch.float64)
    with pytest.raises(InputError, match=r"^q: impl='triton' takes bfloat16, float16 or float32, was torch.float64$"):
        delta_attention(x, x, x, impl="triton")
