"""Hopper's own kernels build without a Hopper GPU, take what they are allowed, and never wait for each product."""

import pytest
import torch

from ..ahead_of_time import HOPPER, build, check_budget, complaints, launches


@pytest.mark.parametrize("width", [64, pytest.param(128, marks=pytest.mark.slow)])
def test_registers_and_spills_stay_within_budget(width: int) -> None:
    case = f"p=2, K=V={width}, bfloat16, Hopper's own"
    check_budget(case, launches(width, width, 2, torch.bfloat16, T=5000, hopper=True))


@pytest.mark.parametrize(("K", "V"), [(64, 64), (128, 128), (64, 128), (128, 64)])
def test_products_stay_asynchronous(K: int, V: int) -> None:
    # A small change can make the assembler wait for each product, at twice the time, and it only says so.
    for name, launch in launches(K, V, 2, torch.bfloat16, T=5000, hopper=True).items():
        if launch.kernel.is_gluon():
            assert complaints(build(launch, HOPPER)) == "", name
