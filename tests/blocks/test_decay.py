"""Gates whose log decays are steps."""

import torch
from torch._dynamo.testing import CompileCounterWithBackend

from zoo.blocks.decay import StepGate


def test_gradients_of_channels_gates_ask_for_no_more_graphs() -> None:
    """How the compiler sums depends on how many numbers there are: here on tokens, and not on tokens times channels."""
    torch._dynamo.reset()
    gate, counter = StepGate(2, 8, decay=(1.0, 16.0)), CompileCounterWithBackend("inductor")
    compiled = torch.compile(gate, backend=counter, fullgraph=True)
    for T in (64, 2, 1000, 2040):
        found = []
        x = torch.randn(2, T, 16)
        for run in (compiled, gate):
            o = run(x)
            found.append([o, *torch.autograd.grad(o.square().sum(), list(gate.parameters()))])
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
    assert counter.frame_count <= 2
