"""Models in one process are compiled each by itself, and are otherwise like any other module."""

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from zoo.builder import build, shrink
from zoo.models import Decoder
from zoo.recipe import load_recipe


def small(width: int = 32) -> Decoder:
    overrides = ["mixer=linear", "model.layers=1", f"model.feed_forward_width={width}"]
    return build(shrink(load_recipe("tiny")).override(overrides))


def test_any_number_of_models_compile_in_one_process() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    tokens = torch.randint(0, 257, (2, 9))
    for number in range(1, 10):  # the compiler takes eight graphs of one code
        compiled = torch.compile(small(16 * number), fullgraph=True, backend=counter)
        with torch.no_grad():
            compiled(tokens)
        assert counter.frame_count == number


def test_a_model_s_graphs_are_its_own() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    tokens = torch.randint(0, 257, (2, 9))
    first, second = small(), small()
    for model, graphs in ((first, 1), (first, 1), (second, 2), (first, 2)):
        logits = torch.compile(model, fullgraph=True, backend=counter)(tokens).logits
        torch.testing.assert_close(logits, model(tokens).logits)
        assert counter.frame_count == graphs


@pytest.mark.parametrize("how", ["copied", "pickled", "saved"])
def test_a_copy_is_a_model_with_code_of_its_own(how: str) -> None:
    model = small()
    if how == "copied":
        other = copy.deepcopy(copy.copy(model))
    elif how == "pickled":
        other = pickle.loads(pickle.dumps(model))
    else:
        torch.save(model, file := io.BytesIO())
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert isinstance(other, Decoder)
    assert type(other).__mro__[1] is Decoder
    codes = {each.forward.__func__.__code__ for each in (model, other)}
    assert len({id(code) for code in codes} | {id(Decoder.forward.__code__)}) >= 2
    tokens = torch.randint(0, 257, (1, 6))
    assert torch.equal(other(tokens).logits, model(tokens).logits)
    assert repr(other) == repr(model)


def test_a_model_ends_with_its_last_reference() -> None:
    model = small()
    gc.disable()
    try:
        gone = weakref.ref(model)
        del model
        assert gone() is None
    finally:
        gc.enable()


def test_a_class_made_of_it_works_as_it_is_written() -> None:
    class Doubled(Decoder):
        def forward(self, tokens):
            return super().forward(tokens).logits * 2

    model = small()
    doubled = Doubled(model.config, model.mixer_configs)
    doubled.load_state_dict(model.state_dict())
    tokens = torch.randint(0, 257, (1, 6))
    assert torch.equal(doubled(tokens), model(tokens).logits * 2)
    assert type(doubled).__name__ == "Doubled"
