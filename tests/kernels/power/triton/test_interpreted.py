"""The Triton kernels without a GPU, run as Python by the interpreter: small problems, all that they can do."""

import ctypes
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from zoo.kernels import recording
from zoo.kernels.errors import InputError
from zoo.kernels.launch import Launch, launcher, unseen
from zoo.kernels.power import power_attention
from zoo.kernels.power.call import Incoming, Inputs, Options, Outputs, Saved
from zoo.kernels.power.triton import op, passes, portable, prepare, states
from zoo.kernels.power.triton.high import passes as high
from zoo.kernels.registration import flat

from ...interpreted_bfloat16 import bfloat16_as_on_a_gpu
from ..error_law import check_error_law, check_same, vanishes
from ..problems import Problem, attend, make_state, problems, run
from ..test_context import check_halves

DTYPES = (torch.float32, torch.float16)


@pytest.fixture(autouse=True)
def _what_is_written_has_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler gives each name of a tensor that a kernel writes to a copy of its own, and keeps the last one's."""

    class Watched:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def run(*arguments: Any, **options: Any) -> None:
                tensors = [
                    x for x in arguments if isinstance(x, Tensor) and x.numel() and not isinstance(x, FakeTensor)
                ]
                places = Counter(x.data_ptr() for x in tensors)
                shared = [x for x in tensors if places[x.data_ptr()] > 1]
                before = [x.clone() for x in shared]
                launcher(self.kernel)[grid](*arguments, **options)
                for x, y in zip(shared, before, strict=True):
                    same = torch.equal(x.view(torch.uint8), y.view(torch.uint8))
                    assert same, f"{self.kernel.__name__} writes to what it is given twice"

            return run

    for module in (high, passes, portable, prepare, states):
        monkeypatch.setattr(module, "launcher", Watched)


# A program of the interpreter costs milliseconds, and p sets how many there are.
@pytest.mark.parametrize(
    ("powers", "widths", "examples"), [((1, 2), (16, 32), 12), ((3,), (16,), 3), ((4,), (16,), 1)], ids=str
)
def test_error_law(powers: tuple[int, ...], widths: tuple[int, ...], examples: int) -> None:
    thorough = settings().max_examples > 100

    @settings(max_examples=10 * examples if thorough else examples)
    @given(problems(dtypes=DTYPES, powers=powers, widths=widths, batches=2, shortest=1, longest=40, offset=False))
    def check(problem: Problem) -> None:
        assume(not vanishes(problem))
        check_error_law(problem, "triton")

    check()


@pytest.mark.parametrize("p", [1, 2])
def test_error_law_with_offsets(p: int) -> None:
    thorough = settings().max_examples > 100

    @settings(max_examples=60 if thorough else 6)
    @given(problems(dtypes=DTYPES, powers=(p,), widths=(16, 32), batches=2, shortest=1, longest=40, offset=True))
    def check(problem: Problem) -> None:
        assume(not vanishes(problem))
        check_error_law(problem, "triton")

    check()


def tensors(T: int, heads: tuple[int, int, int], K: int, V: int, B: int = 1) -> list[Tensor]:
    """q, k, v and log gates."""
    random = torch.Generator().manual_seed(T)
    q, k, v = (torch.randn(B, T, h, width, generator=random) for h, width in zip(heads, (K, K, V), strict=True))
    return [q, k, v, -torch.rand(B, T, heads[2], generator=random)]


def problem(*inputs: Tensor, p: int, chunk_size: int | None = None) -> Problem:
    q, k, v, log_g = inputs
    do = torch.ones(*q.shape[:2], max(q.shape[2], k.shape[2], v.shape[2]), v.shape[3])
    return Problem(q, k, v, log_g, None, None, do, None, None, p, q.shape[-1] ** -0.5, p % 2 == 0, chunk_size)


@pytest.mark.parametrize(("K", "V"), [(32, 16), (16, 128)])
def test_inner_blocks_of_few_channels_agree(K: int, V: int) -> None:
    """From p = 3 on a state has inner blocks of as few as two channels, and gradients gather rows from all of them."""
    q, k, v, log_g = tensors(40, (1, 1, 1), K, V)
    check_error_law(problem(q, k, v, 0.1 * log_g, p=3, chunk_size=32), "triton")


@pytest.mark.parametrize("registers", [4, 2])
@pytest.mark.parametrize("p", [3, 4])
def test_products_take_fewer_channels_than_lie_side_by_side(
    p: int, registers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two and one of the four that a state has there."""
    monkeypatch.setattr(high, "REGISTERS", registers)
    q, k, v, log_g = tensors(40, (2, 1, 1), 16, 16)
    check_error_law(problem(q, k, v, 0.1 * log_g, p=p, chunk_size=32), "triton")


@pytest.mark.parametrize("p", [3, 4])
def test_error_law_of_high_powers_in_bfloat16(p: int) -> None:
    """A monomial is rounded, and what it meets, and neither its last channel nor what comes of it.

    Queries and keys have a direction in common: a token that nearly no key meets decides an error by luck.
    """
    q, k, v, log_g = tensors(48, (1, 1, 1), 16, 16)
    gated = problem(*(x.bfloat16() for x in (q + q[:, :1], k + q[:, :1], v)), 0.1 * log_g, p=p, chunk_size=32)
    exact, plain = run(gated.double(), "quadratic"), run(gated, "quadratic")
    with bfloat16_as_on_a_gpu():
        ours = run(gated, "triton")
    for name, reference in exact.items():
        error, allowed = (float((x[name].double() - reference).norm()) for x in (ours, plain))
        digits = (3e-5 if name == "dlog_g" else 3e-6) * float(reference.norm())
        assert error <= 1.5 * allowed + digits, f"{name}: {error:.2e}, plain {allowed:.2e}"


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("T", [1, 2])
def test_error_law_of_what_strong_gates_leave(T: int, p: int) -> None:
    """One float32 exponent of -72 can be off by 4e-6, and what is left is all that a state's gradient consists of."""
    q, k, v, _ = tensors(T, (3, 1, 1), 16, 16, B=2)
    sums = torch.linspace(-52, -50, 1000)
    exponents = sums.double() / math.log(2)
    worst = sums[(exponents.float() - exponents).abs().argmax()]
    log_g = torch.full((2, T, 1), float(worst) / T)
    S, z = (x.float() for x in make_state(2, 1, 16, 16, p, 4, torch.Generator().manual_seed(T), offset=False))
    kept = replace(problem(q, k, v, log_g, p=p), S=S, z=z, dS=S + 1, dz=z + 1, normalize=False)
    check_error_law(kept, "triton")


@pytest.mark.parametrize("gates", ["none", "mild", "strong"])
@pytest.mark.parametrize(("T", "chunk_size"), [(1, None), (16, None), (70, 32), (100, 48)])
@pytest.mark.parametrize("heads", [(1, 1, 4), (2, 2, 6)])
def test_error_law_of_keys_that_heads_share(
    heads: tuple[int, int, int], T: int, chunk_size: int | None, gates: str
) -> None:
    """At p = 1 what heads give to a query and a key that they share is added up before they meet tokens."""
    q, k, v, log_g = tensors(T, heads, 16, 32)
    log_g = {"none": None, "mild": 0.1 * log_g, "strong": 8 * log_g}[gates]
    check_error_law(replace(problem(q, k, v, log_g, p=1, chunk_size=chunk_size), normalize=False), "triton")


@pytest.mark.parametrize("given", [False, True])
def test_error_law_of_shared_keys_beside_states(given: bool) -> None:
    """A gradient of the last normaliser is not among what is added up."""
    q, k, v, log_g = tensors(70, (1, 1, 3), 16, 16)
    S, z = make_state(1, 3, 16, 16, 1, 4, torch.Generator().manual_seed(0), offset=False)
    beside = replace(problem(q, k, v, 0.1 * log_g, p=1, chunk_size=32), S=S.float(), z=z.float(), normalize=False)
    if given:
        beside = replace(beside, dS=beside.S + 1, dz=beside.z + 1)
    check_error_law(beside, "triton")


@pytest.mark.parametrize(("p", "offset"), [(1, None), (2, 0.7), (3, None)])
def test_halves_of_shares_are_one_call(p: int, offset: float | None) -> None:
    q, k, v, log_g = tensors(80, (2, 1, 1), 16, 16)
    log_g[:, 60] = -torch.inf
    offsets = None if offset is None else torch.full((2,), offset)
    check_halves(replace(problem(q, k, v, log_g, p=p, chunk_size=32), offset=offsets), 2, "triton")


def test_halves_of_keys_that_heads_share_are_one_call() -> None:
    q, k, v, log_g = tensors(80, (1, 1, 3), 16, 16)
    log_g[:, 60] = -torch.inf
    check_halves(replace(problem(q, k, v, log_g, p=1, chunk_size=32), normalize=False), 2, "triton")


@pytest.mark.parametrize(("p", "offset"), [(1, 0.0), (2, 0.0), (2, 0.7), (3, 0.0)])
def test_packed_sequences_equal_separate_calls(p: int, offset: float) -> None:
    q, k, v, log_g = tensors(80, (2, 1, 1), 16, 16)
    cu_seqlens = torch.tensor([0, 33, 34, 80], dtype=torch.int32)
    options = {"p": p, "offset": offset, "return_state": True, "impl": "triton"}
    packed = power_attention(q, k, v, log_g, cu_seqlens=cu_seqlens, **options)
    assert packed.state is not None
    for i, (a, b) in enumerate(((0, 33), (33, 34), (34, 80))):
        alone = power_attention(q[:, a:b], k[:, a:b], v[:, a:b], log_g[:, a:b], chunk_size=32, **options)
        assert alone.state is not None
        torch.testing.assert_close(packed.o[:, a:b], alone.o, rtol=2e-5, atol=2e-6)
        torch.testing.assert_close(packed.state.S[i : i + 1], alone.state.S)
        torch.testing.assert_close(packed.state.z[i : i + 1], alone.state.z)


def test_a_power_without_kernels_for_offsets_is_refused() -> None:
    q, k, v, _ = tensors(5, (1, 1, 1), 16, 16)
    with pytest.raises(InputError, match="p: impl='triton' takes 1 and 2 beside an offset, was 3"):
        power_attention(q, k, v, p=3, offset=1.0, impl="triton")


@pytest.mark.parametrize("t", [1, 32, 50])
def test_split_anywhere(t: int) -> None:
    q, k, v, log_g = tensors(70, (2, 2, 1), 16, 32)
    whole = power_attention(q, k, v, log_g, return_state=True, impl="triton")
    first = power_attention(q[:, :t], k[:, :t], v[:, :t], log_g[:, :t], return_state=True, impl="triton")
    last = power_attention(
        q[:, t:], k[:, t:], v[:, t:], log_g[:, t:], state=first.state, return_state=True, impl="triton"
    )
    assert whole.state is not None
    assert last.state is not None
    torch.testing.assert_close(torch.cat((first.o, last.o), 1), whole.o, rtol=2e-5, atol=2e-6)
    torch.testing.assert_close(last.state.S, whole.state.S, rtol=2e-5, atol=2e-5)


def test_states_of_the_chunked_form_are_accepted() -> None:
    q, k, v, log_g = tensors(50, (1, 1, 1), 16, 16)
    _, state = power_attention(q, k, v, log_g, return_state=True, impl="chunked")
    ours = power_attention(q, k, v, log_g, state=state, return_state=True, impl="triton")
    theirs = power_attention(q, k, v, log_g, state=state, return_state=True, impl="chunked")
    torch.testing.assert_close(ours.o, theirs.o, rtol=2e-5, atol=2e-6)
    torch.testing.assert_close(ours.state, theirs.state, rtol=2e-5, atol=2e-5)


def test_saved_states_change_no_bit() -> None:
    inputs = [x.requires_grad_() for x in tensors(70, (2, 1, 1), 16, 16)]
    results = []
    for save_states in (True, False):
        o, _ = power_attention(*inputs, save_states=save_states, impl="triton")
        results.append(torch.autograd.grad(o.sum(), inputs))
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


def test_two_runs_give_the_same_bits() -> None:
    task = problem(*tensors(70, (4, 2, 2), 16, 16, B=2), p=2)
    first, second = run(task, "triton"), run(task, "triton")
    assert all(torch.equal(x, second[name]) for name, x in first.items())


def test_layouts_and_chunk_sizes_change_rounding_only() -> None:
    task = problem(*tensors(70, (2, 1, 1), 16, 16), p=2)
    theirs = run(task, "triton")
    check_same(task, run(task.map(lambda x: x.transpose(0, 1).contiguous().transpose(0, 1)), "triton"), theirs)
    check_same(task, run(task, "triton", chunk_size=48), theirs)


def test_compiles_whole_with_what_surrounds_it() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(32, 3 * 32)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.project(x).unflatten(-1, (3, 2, 16)).unbind(2)
            return power_attention(q, k, v, impl="triton").o.flatten(2)

    torch.manual_seed(0)
    layer, x = Layer(), torch.randn(1, 40, 32)
    expected = layer(x)
    expected.sum().backward()
    gradient = layer.project.weight.grad
    layer.project.weight.grad = None
    compiled = torch.compile(layer, fullgraph=True)(x)
    compiled.sum().backward()
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(layer.project.weight.grad, gradient)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_opaque_passes_give_the_same(p: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in bfloat16 on a GPU, where the compiler sees neither pass."""
    inputs = tensors(80, (2, 1, 1), 16, 16)
    plain = run(problem(*inputs, p=p, chunk_size=32), "triton")
    monkeypatch.setattr(op, "_is_opaque", lambda *_: True)
    opaque = run(problem(*inputs, p=p, chunk_size=32), "triton")
    assert all(torch.equal(x, opaque[name]) for name, x in plain.items())


def _interpreted(launch: Launch) -> Callable[..., None]:
    """A stand-in for a compiled kernel, which takes addresses."""

    def tensor(address: int, like: Tensor) -> Tensor:
        size = sum((count - 1) * stride for count, stride in zip(like.shape, like.stride(), strict=True)) + 1
        if not like.numel():
            return torch.empty(like.shape, dtype=like.dtype)
        memory = (ctypes.c_char * (size * like.element_size())).from_address(address)
        return torch.frombuffer(memory, dtype=like.dtype).as_strided(like.shape, like.stride())

    def run(*arguments: Any, stream: int) -> None:
        tensors = [tensor(address, like) for address, like in zip(arguments, launch.tensors, strict=False)]
        launch.kernel[launch.grid](*tensors, *launch.numbers, **launch.constants, **launch.options)

    return run


@pytest.fixture
def _memory_is_filled() -> Iterator[None]:
    """With NaN, so that what nobody has written is seen where it is read."""
    torch.use_deterministic_algorithms(True)  # which `fill_uninitialized_memory` needs, and that is the default
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_memory_is_filled")
@pytest.mark.parametrize("heads", [(2, 2, 2), (4, 2, 1)], ids=str)
@pytest.mark.parametrize(("p", "gated"), [(1, True), (2, True), (2, False)])
def test_recorded_passes_give_the_same(
    p: int, gated: bool, heads: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "bound", _interpreted)
    monkeypatch.setattr(recording, "current_stream", lambda _: 0)
    q, k, v, log_g = tensors(70, heads, 16, 16)
    inputs = Inputs(q, k, v, log_g if gated else None)
    options = Options(p, 0.25, normalize=p == 2, save_states=True, save_output=p == 2)
    with unseen(q.device):
        outputs = passes.forward(inputs, options)
        incoming = Incoming(torch.ones_like(outputs.o), None, None)
        saved = Saved(outputs.o, outputs.denominator, outputs.states, outputs.gates)
        for function, given in ((passes.forward, inputs), (passes.backward, (*incoming, *inputs, *saved))):
            call = flat(function)
            recorded = recording.record(call, *given, *options)
            assert recorded is not None
            found = recorded.replay([x.data_ptr() for x in given if x is not None], q.device)
            for x, y in zip(found[:3], call(*given, *options)[:3], strict=True):
                torch.testing.assert_close(x, y, rtol=0, atol=0)


@pytest.mark.parametrize("packed", [False, True])
def test_opaque_passes_pass_opcheck(packed: bool) -> None:
    q, k, v, log_g = tensors(40, (4, 2, 1), 16, 16)
    cu_seqlens = torch.tensor([0, 7, 40], dtype=torch.int32) if packed else None
    inputs = Inputs(q, k, v, log_g, cu_seqlens=cu_seqlens)
    options = Options(2, 0.25, normalize=True, use_triton=True, return_state=True, save_states=True)
    torch.library.opcheck(torch.ops.zoo.power_attention_kernels, (*inputs, *options))
    outputs = Outputs(*torch.ops.zoo.power_attention_kernels(*inputs, *options))
    incoming = Incoming(torch.ones_like(outputs.o), outputs.S, outputs.z)
    arguments = (*incoming, *inputs, *outputs.saved(options), *options)
    torch.library.opcheck(torch.ops.zoo.power_attention_backward_kernels, arguments)


@pytest.mark.parametrize("has_final", [False, True])
def test_opaque_passes_of_keys_that_heads_share_pass_opcheck(has_final: bool) -> None:
    """Kernels add up what heads give them, but not where a gradient of the last state comes in."""
    inputs = Inputs(*tensors(40, (1, 1, 4), 16, 16))
    options = Options(1, 0.25, normalize=False, use_triton=True, return_state=True, save_states=True)
    outputs = Outputs(*torch.ops.zoo.power_attention_kernels(*inputs, *options))
    incoming = Incoming(torch.ones_like(outputs.o), *((outputs.S, outputs.z) if has_final else (None, None)))
    arguments = (*incoming, *inputs, *outputs.saved(options), *options)
    torch.library.opcheck(torch.ops.zoo.power_attention_backward_kernels, arguments)


@pytest.mark.parametrize("packed", [False, True])
def test_opcheck(packed: bool) -> None:
    q, k, v, log_g = (x.requires_grad_() for x in tensors(40, (2, 1, 1), 16, 16))
    cu_seqlens = torch.tensor([0, 7, 40], dtype=torch.int32) if packed else None
    options = Options(2, 0.25, normalize=True, use_triton=True, return_state=True, save_states=True)
    torch.library.opcheck(torch.ops.zoo.power_attention, (*Inputs(q, k, v, log_g, cu_seqlens=cu_seqlens), *options))


def test_no_tokens() -> None:
    q, k, v, log_g = tensors(0, (2, 1, 1), 16, 16)
    o, state = attend(problem(q, k, v, log_g, p=2), "triton")
    assert o.shape == (1, 0, 2, 16)
    assert not state.S.any()


def test_other_widths_are_refused_by_name() -> None:
    q = torch.randn(1, 4, 1, 20)
    with pytest.raises(
        InputError, match=r"^q: impl='triton' takes widths 16, 32, 64 and 128, was 20; the nearest is 16$"
    ):
        power_attention(q, q, q, impl="triton")


@pytest.mark.parametrize("exponent", [104, 124])
def test_key_length_is_free_to_the_end_of_the_range(exponent: int) -> None:
    torch.manual_seed(0)
    q, k, v = torch.ones(1, 20, 1, 16), torch.rand(1, 20, 1, 16) + 1, torch.randn(1, 20, 1, 16)
    found = []
    for factor in (1.0, 2.0 ** (-exponent / 2)):
        leaves = [x.clone().requires_grad_() for x in (q * factor, k, v)]
        o, _ = power_attention(*leaves, p=2, scale=1.0, impl="triton", chunk_size=16)
        dq, dk, dv = torch.autograd.grad(o.sum(), leaves)
        found.append([o, dq * factor, dk, dv])
    for name, expected, ours in zip(("o", "dq", "dk", "dv"), *found, strict=True):
        if name == "o" or exponent < 110:
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5, msg=name)
        else:
            assert not ours.any(), name
