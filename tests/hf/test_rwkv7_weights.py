"""RWKV-7's published files: the logits of a plain implementation of its equations, and the same bits back."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

import zoo.hf
from zoo.errors import InputError

WIDTH, HEADS, LAYERS, VOCABULARY, HIDDEN = 16, 2, 3, 24, 40
RANKS = {"w": 4, "a": 5, "v": 6}


def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    row, square = (1, 1, WIDTH), (WIDTH, WIDTH)
    shapes = {"emb.weight": (VOCABULARY, WIDTH), "head.weight": (VOCABULARY, WIDTH)}
    norms = ["blocks.0.ln0", "ln_out"]
    for layer in range(LAYERS):
        block = f"blocks.{layer}"
        norms += [f"{block}.{name}" for name in ("ln1", "ln2", "att.ln_x")]
        shapes |= {f"{block}.att.x_{part}": row for part in "rwkvag"} | {f"{block}.ffn.x_k": row}
        shapes |= {f"{block}.att.{name}.weight": square for name in ("receptance", "key", "value", "output")}
        shapes |= {f"{block}.att.k_k": row, f"{block}.att.k_a": row, f"{block}.att.r_k": (HEADS, WIDTH // HEADS)}
        for part, rank in RANKS.items():
            shapes |= {f"{block}.att.{part}0": row, f"{block}.att.{part}1": (WIDTH, rank)}
            shapes[f"{block}.att.{part}2"] = (rank, WIDTH)
        shapes |= {f"{block}.att.g1": (WIDTH, 7), f"{block}.att.g2": (7, WIDTH)}
        shapes |= {f"{block}.ffn.key.weight": (HIDDEN, WIDTH), f"{block}.ffn.value.weight": (WIDTH, HIDDEN)}
    drawn = {name: torch.randn(shape) / 3 for name, shape in shapes.items()}
    for norm in norms:
        drawn |= {f"{norm}.weight": 1 + torch.randn(WIDTH) / 4, f"{norm}.bias": torch.randn(WIDTH) / 4}
    return drawn


def plain_logits(file: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """The equations of arXiv 2503.14456 token by token, in float64, `tokens [T]` to `[T, vocab]`."""
    W = {name: x.double().squeeze() for name, x in file.items()}

    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (WIDTH,), W[f"{name}.weight"], W[f"{name}.bias"], 1e-5)

    def before(x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 1, -1)) - x

    x, first = norm("blocks.0.ln0", W["emb.weight"][tokens]), torch.empty(0)
    N = WIDTH // HEADS
    for layer in range(LAYERS):
        att = f"blocks.{layer}.att"
        y = norm(f"blocks.{layer}.ln1", x)
        r_in, w_in, k_in, v_in, a_in, g_in = (y + before(y) * W[f"{att}.x_{part}"] for part in "rwkvag")
        r, k, v = (
            r_in @ W[f"{att}.receptance.weight"].T,
            k_in @ W[f"{att}.key.weight"].T,
            v_in @ W[f"{att}.value.weight"].T,
        )
        w = torch.exp(
            -math.exp(-0.5) * torch.sigmoid(W[f"{att}.w0"] + torch.tanh(w_in @ W[f"{att}.w1"]) @ W[f"{att}.w2"])
        )
        a = torch.sigmoid(W[f"{att}.a0"] + a_in @ W[f"{att}.a1"] @ W[f"{att}.a2"])
        if layer == 0:
            first = v
        else:
            v = v + (first - v) * torch.sigmoid(W[f"{att}.v0"] + v_in @ W[f"{att}.v1"] @ W[f"{att}.v2"])
        gate = torch.sigmoid(g_in @ W[f"{att}.g1"]) @ W[f"{att}.g2"]
        removed = F.normalize((k * W[f"{att}.k_k"]).unflatten(-1, (HEADS, N)), dim=-1)
        k = k * (1 + (a - 1) * W[f"{att}.k_a"])
        r, w, k, v, a = (z.unflatten(-1, (HEADS, N)) for z in (r, w, k, v, a))
        S, outputs = torch.zeros(HEADS, N, N, dtype=torch.float64), []
        for t in range(len(tokens)):  # S [H, v, k]
            unlearned = (S @ removed[t][..., None]) * (removed[t] * a[t])[:, None]
            S = S * w[t][:, None] - unlearned + v[t][..., None] * k[t][:, None]
            outputs.append((S @ r[t][..., None])[..., 0])
        o = F.group_norm(
            torch.stack(outputs).flatten(1), HEADS, W[f"{att}.ln_x.weight"], W[f"{att}.ln_x.bias"], N * 1e-5
        )
        o = o + ((r * k * W[f"{att}.r_k"]).sum(-1, keepdim=True) * v).flatten(1)
        x = x + (o * gate) @ W[f"{att}.output.weight"].T
        y = norm(f"blocks.{layer}.ln2", x)
        ffn = f"blocks.{layer}.ffn"
        hidden = ((y + before(y) * W[f"{ffn}.x_k"]) @ W[f"{ffn}.key.weight"].T).relu() ** 2
        x = x + hidden @ W[f"{ffn}.value.weight"].T
    return norm("ln_out", x) @ W["head.weight"].T


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@torch.no_grad()
def test_published_files_have_the_logits_of_the_equations(suffix: str, tmp_path: Path) -> None:
    file, path = weights(), tmp_path / f"rwkv{suffix}"
    torch.save(file, path) if suffix == ".pth" else save_file(file, path)
    decoder, tokens = zoo.hf.import_weights(path), torch.randint(VOCABULARY, (1, 11))
    expected = plain_logits(file, tokens[0])
    torch.testing.assert_close(decoder(tokens).logits[0].double(), expected, rtol=1e-4, atol=1e-4)
    state = decoder.init_state(1)
    steps = torch.stack([decoder.step(tokens[:, t], state)[0] for t in range(11)])
    assert torch.equal(steps.argmax(-1), expected.argmax(-1))

    zoo.hf.export_weights(decoder, tmp_path / "out", "rwkv7")
    after = load_file(tmp_path / "out" / "model.safetensors")
    unused = {f"blocks.0.att.v{part}" for part in range(3)}  # the first layer's values are its own
    assert after.keys() == file.keys() - unused
    assert all(torch.equal(file[name], x) for name, x in after.items())
    assert torch.equal(zoo.hf.import_weights(tmp_path / "out")(tokens).logits, decoder(tokens).logits)


class _Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("run",)


def test_files_that_are_more_than_tensors_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rwkv.pth"
    torch.save(weights() | {"code": _Runs()}, path)
    with pytest.raises(InputError, match=r"rwkv\.pth: cannot be read as tensors alone") as refused:
        zoo.hf.import_weights(path)
    assert "\n" not in str(refused.value)
    assert capsys.readouterr().out == ""
    torch.save({"other": torch.ones(2)}, path)
    with pytest.raises(InputError, match=r"emb\.weight: missing, or of another shape than an RWKV-7 has"):
        zoo.hf.import_weights(path)
    torch.save([torch.ones(2)], path)
    with pytest.raises(InputError, match="expected tensors by name, was list"):
        zoo.hf.import_weights(path)


def test_models_that_are_no_rwkv7_are_not_written(tmp_path: Path) -> None:
    decoder = zoo.build(zoo.shrink(zoo.load_recipe("rwkv7-124m")))
    with pytest.raises(InputError, match=r"a rwkv7 has .* a head of its own, .* tie_embeddings=True"):
        zoo.hf.export_weights(decoder, tmp_path / "out", "rwkv7")
