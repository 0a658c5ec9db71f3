"""torch.func over whole models: gradients a sample, and forward-mode derivatives."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import zoo
from zoo.models import decoder


@pytest.mark.parametrize("most", [10**6, 0], ids=["few classes", "many classes"])
@pytest.mark.parametrize("mixer", ["softmax", "gated-power", "rwkv7", "mamba2"])
@sdpa_kernel(SDPBackend.MATH)  # torch's other kernels know no forward mode
def test_gradients_a_sample_and_forward_derivatives(mixer: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "MOST_CLASSES", most)
    torch.manual_seed(0)
    model = zoo.build("tiny", mixer=mixer, overrides=["model.layers=1"]).double()
    tokens, targets = torch.randint(0, 257, (2, 3, 9))
    parameters = {name: weight.detach() for name, weight in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], tokens: Tensor, targets: Tensor) -> Tensor:
        return functional_call(_Loss(model), {f"model.{name}": x for name, x in parameters.items()}, (tokens, targets))

    samples = vmap(grad(loss), (None, 0, 0))(parameters, tokens[:, None], targets[:, None])
    direction = {name: torch.randn_like(weight) for name, weight in parameters.items()}
    along = jvp(lambda p: loss(p, tokens, targets), (parameters,), (direction,))[1]
    expected = torch.zeros(())
    for row in range(3):
        value = model.loss(tokens[row, None], targets[row, None])
        gradients = torch.autograd.grad(value, list(model.parameters()))
        for name, gradient in zip(parameters, gradients, strict=True):
            torch.testing.assert_close(samples[name][row], gradient, rtol=1e-5, atol=1e-7)
            expected = expected + (gradient * direction[name]).sum() / 3
    torch.testing.assert_close(along.double(), expected, rtol=1e-5, atol=1e-7)


class _Loss(nn.Module):
    """The loss as a module's forward, which is what `functional_call` calls."""

    def __init__(self, model: zoo.Decoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return self.model.loss(tokens, targets)
