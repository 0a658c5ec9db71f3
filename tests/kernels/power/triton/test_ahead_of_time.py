"""The kernels build for GPUs that are not here, and take what they are allowed on the one they are tuned for."""

import re

import pytest
import torch
from triton.backends.compiler import GPUTarget

from zoo.kernels.power.triton import configs

from .ahead_of_time import HOPPER, HOPPER_SHARED, build, check_budget, launches

# Shared memory a program may have, in bytes.
CHIPS = {
    "sm_80": (GPUTarget("cuda", 80, 32), 163 * 1024),
    "sm_90": (HOPPER, HOPPER_SHARED),
    "sm_100": (GPUTarget("cuda", 100, 32), 227 * 1024),
    "gfx942": (GPUTarget("hip", "gfx942", 64), 64 * 1024),
}
CASES = {
    "p=1, K=V=64, bfloat16": (64, 64, 1, torch.bfloat16),
    "p=2, K=V=64, bfloat16": (64, 64, 2, torch.bfloat16),
    "p=2, K=V=128, bfloat16": (128, 128, 2, torch.bfloat16),
    "p=2, K=V=64, float16": (64, 64, 2, torch.float16),
    "p=3, K=V=32, bfloat16": (32, 32, 3, torch.bfloat16),
    "p=3, K=V=64, bfloat16": (64, 64, 3, torch.bfloat16),
    "p=4, K=V=16, bfloat16": (16, 16, 4, torch.bfloat16),
}

OF_SHARED_KEYS = ("linear_sums_kernel", "shared_scores_kernel", "shared_gradient_kernel")


@pytest.mark.parametrize("return_state", [False, True])  # which takes sums of float32 operands
@pytest.mark.parametrize("chip", CHIPS)
def test_builds_within_shared_memory(chip: str, return_state: bool) -> None:
    target, limit = CHIPS[chip]
    for name, launch in launches(64, 64, 2, torch.bfloat16, T=5000, return_state=return_state).items():
        assert build(launch, target).metadata.shared <= limit, name


@pytest.mark.slow
@pytest.mark.parametrize(("K", "V", "p"), [(64, 64, 3), (128, 16, 3), (16, 16, 4)])
@pytest.mark.parametrize("chip", CHIPS)
def test_high_powers_build_within_shared_memory(
    chip: str, K: int, V: int, p: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(configs, "architecture", lambda _x: chip)
    target, limit = CHIPS[chip]
    for name, launch in launches(K, V, p, torch.bfloat16, T=5000).items():
        assert build(launch, target).metadata.shared <= limit, name


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if "K=V=64, bf" in case else pytest.mark.slow) for case in CASES]
)
def test_registers_and_spills_stay_within_budget(case: str) -> None:
    K, V, p, dtype = CASES[case]
    check_budget(case, launches(K, V, p, dtype, T=5000))


def test_offsets_stay_within_their_budget() -> None:
    check_budget("p=2, K=V=64, bfloat16, offset", launches(64, 64, 2, torch.bfloat16, T=5000, offset=True))


def test_gradients_of_keys_that_heads_share_stay_within_their_budget() -> None:
    found = launches(128, 64, 1, torch.bfloat16, T=5000, heads=(1, 1, 24))
    check_budget("p=1, K=128, V=64, bfloat16, a key of 24 heads", {name: found[name] for name in OF_SHARED_KEYS})


@pytest.mark.slow
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_gradients_of_keys_that_heads_share_build_within_shared_memory(
    dtype: torch.dtype, chip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(configs, "architecture", lambda _x: chip)
    target, limit = CHIPS[chip]
    found = launches(128, 64, 1, dtype, T=5000, heads=(1, 1, 24))
    for name in OF_SHARED_KEYS:
        assert build(found[name], target).metadata.shared <= limit, name


@pytest.mark.slow
@pytest.mark.parametrize("chip", CHIPS)
def test_offsets_build_within_shared_memory(chip: str) -> None:
    target, limit = CHIPS[chip]
    for name, launch in launches(64, 64, 2, torch.bfloat16, T=5000, offset=True).items():
        assert build(launch, target).metadata.shared <= limit, name


@pytest.mark.parametrize(("K", "V", "p"), [(16, 16, 2), (64, 64, 1), (64, 64, 2), (128, 128, 2), (64, 32, 3)])
def test_a_step_takes_its_state_through_registers(K: int, V: int, p: int) -> None:
    """A trip is four loads of 16 bytes a thread and four stores; z takes one more of each, where its layout changes."""
    kernel = build(launches(K, V, p, torch.bfloat16, T=5)["step_kernel"], HOPPER)
    for access in ("ld.global.v4.b32", "st.global.v4.b32"):
        assert kernel.asm["ptx"].count(access) == 5, access
    trip = kernel.asm["ttgir"].partition("scf.for")[2].partition("scf.yield")[0]
    assert trip.count("tt.store") == 4
    assert "convert_layout" not in trip


@pytest.mark.parametrize(("K", "V", "p"), [(64, 64, 1), (64, 64, 2), (128, 128, 2), (64, 32, 3)])
def test_a_step_beside_a_journal_has_16_pieces_of_16_bytes_on_their_way(K: int, V: int, p: int) -> None:
    """Of sums, and of keys and values together, unless these are narrower. All stay in their threads."""
    kernel = build(launches(K, V, p, torch.bfloat16, T=5)["read_kernel"], HOPPER)
    assert kernel.asm["ptx"].count("ld.global.v4.b32") >= (32 if V == K else 24)
    for loop in kernel.asm["ttgir"].split("scf.for")[1:]:
        trip = loop.partition("scf.yield")[0]
        assert "tt.store" not in trip
        moved = [line for line in trip.splitlines() if "convert_layout" in line]
        assert not [line for line in moved if re.search(r"tensor<\d+x\d+x\d+x", line)]
