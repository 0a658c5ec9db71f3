"""Training converted models as transformers users do: Trainer, adapters, checkpointing, the compiler."""

import inspect
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import StaticCache, Trainer, TrainingArguments

import zoo.hf

from .tiny import converted, fresh, greedy, padded, tiny, tokens

# peft asks by names that transformers no longer likes
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")


def _gradients(model: torch.nn.Module, ids: Tensor) -> dict[str, Tensor]:
    model.train()
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("architecture", ["Llama", "GPT2"])
def test_checkpointing_gives_the_same_gradients(architecture: str, reentrant: bool) -> None:
    model, ids = tiny(architecture, **({} if architecture == "Llama" else _NO_DROPOUT)), tokens()
    zoo.hf.convert(model)
    expected = _gradients(model, ids)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    found = _gradients(model, ids)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


_NO_DROPOUT = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_recomputes_with_the_padding_it_had(reentrant: bool) -> None:
    model = fresh()
    rows, mask = padded(tokens(), [3, 1])
    other, other_mask = padded(tokens(seed=1), [1, 3])

    def gradients() -> list[Tensor]:
        model.zero_grad()
        losses = [
            model(x, attention_mask=m, labels=x.masked_fill(m == 0, -100)).loss
            for x, m in ((rows, mask), (other, other_mask))
        ]
        sum(losses).backward()
        return [p.grad.clone() for p in model.parameters()]

    model.train()
    expected = gradients()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    for one, other_one in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(one, other_one, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("targets", [None, "all-linear"])
@pytest.mark.parametrize("architecture", ["Llama", "GPT2"])
def test_adapters_leave_gates_alone(architecture: str, targets: str | None) -> None:
    model, ids = tiny(architecture), tokens()
    zoo.hf.convert(model)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=targets, fan_in_fan_out=architecture == "GPT2"))
    names = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert names
    assert not any("retention_gate" in name for name in names)
    gradients = _gradients(adapted, ids)
    assert gradients.keys() == set(names)
    adapted.eval()
    assert greedy(adapted, ids, 2).shape == (2, 2)


def test_gates_can_be_trained_beside_adapters() -> None:
    config = LoraConfig(r=2, modules_to_save=["retention_gate"])
    adapted = get_peft_model(fresh(), config)
    assert any("retention_gate" in name for name in _gradients(adapted, tokens()))


class _Rows(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = tokens(1, 8, seed=index)[0]
        return {"input_ids": ids, "labels": ids, "unused": torch.zeros(1)}


def test_a_trainer_trains_saves_and_loads(tmp_path: Path) -> None:
    model = fresh()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True,
        save_strategy="no", disable_tqdm=True, logging_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=_Rows())
    trainer.train()
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters() if "gate" in name)
    trainer.save_model(str(tmp_path / "model"))
    loaded = type(model).from_pretrained(tmp_path / "model")
    ids = tokens()
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model.eval()(ids).logits)


def test_the_signature_says_which_columns_there_are() -> None:
    assert "input_ids" in inspect.signature(type(fresh()).forward).parameters


def test_label_smoothing_shifts_the_labels_as_before() -> None:
    assert fresh()._get_name() == "LlamaForCausalLM"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gated", "middle"])
def test_training_compiles_whole(kind: str) -> None:
    model = converted("Llama", kind).train()
    rows, mask = padded(tokens(), [3, 1])
    compiled = torch.compile(lambda ids, mask: model(ids, attention_mask=mask, use_cache=False).logits, fullgraph=True)
    found, expected = compiled(rows, mask), model(rows, attention_mask=mask, use_cache=False).logits
    real = mask.bool()
    torch.testing.assert_close(found[real], expected[real], rtol=1e-4, atol=1e-4)
    one, other = (torch.autograd.grad(x[real].square().mean(), list(model.parameters())) for x in (found, expected))
    for first, second in zip(one, other, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-5)
    model.eval()


@pytest.mark.slow
@torch.no_grad()
def test_static_decoding_compiles_whole_and_once() -> None:
    model, ids = converted("Llama", "gated"), tokens(2, 8)
    expected, cache = model(ids).logits, StaticCache(model.config, 16)
    model(ids[:, :3], cache=cache)
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounter()
    step = torch.compile(lambda x: model(x, cache=cache).logits, fullgraph=True, backend=counter)
    for t in range(3, 8):
        torch.testing.assert_close(step(ids[:, t : t + 1])[:, 0], expected[:, t], rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 1
