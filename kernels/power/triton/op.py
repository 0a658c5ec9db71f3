"""The Triton implementation behind the op: plain tensors in and out, absent ones empty.

Either the compiler sees through the op to its kernels, or each pass is one opaque op. It is where models train, in
bfloat16 at p <= 2: to see through it took a third of the time in which a model is compiled, there is nothing left to
fuse, and Hopper's own kernels the compiler does not know. An opaque pass is launched as it was recorded.
"""

from collections.abc import Callable, Hashable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from zoo.kernels.launch import Launch, compile_together, rehearsal, unseen
from zoo.kernels.power.call import Gradients, Incoming, Inputs, Options, Outputs, Saved
from zoo.kernels.power.heads import gather_heads, separate_gradients
from zoo.kernels.power.triton.configs import wanted
from zoo.kernels.power.triton.passes import backward, forward
from zoo.kernels.power.triton.plan import make_plan
from zoo.kernels.recording import Recorder
from zoo.kernels.registration import flat, register_op
from zoo.kernels.triton_support import INTERPRETED

__all__ = ["fake_gradients", "fake_saved", "laid_out", "rehearse", "triton_backward", "triton_forward"]


def fake_saved(inputs: Inputs, options: Options) -> tuple[Tensor, Tensor]:
    """The states and the summed gates that `triton_forward` saves, without numbers."""
    plan, q = make_plan(inputs, options), inputs.q
    states = q.new_empty(plan.state_shape if plan.has_states(inputs.S) else (0,), dtype=plan.dtype)
    saves_gates = plan.gated and not plan.exact_gates
    return states, q.new_empty(plan.gates_shape if saves_gates else (0,), dtype=torch.float32)


def fake_gradients(incoming: Incoming, inputs: Inputs, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk and dv of the pass that the compiler does not see through, without numbers: some are still to be added."""
    plan = make_plan(inputs, options)
    counts = (*plan.gradient_heads(has_final=incoming.dS is not None), plan.heads.state)
    dq, dk, dv = (separate_gradients(x, count) for x, count in zip(inputs[:3], counts, strict=True))
    return dq, dk, dv


def _is_opaque(inputs: Inputs, options: Options) -> bool:
    q = inputs.q
    narrow = q.dtype == torch.bfloat16 and options.p <= 2 and inputs.offset is None
    return q.device.type == "cuda" and narrow and not INTERPRETED


def laid_out(inputs: Inputs) -> Inputs:
    """As the kernels read them, and where the compiler sees it."""
    q, k, v, log_g, *_ = inputs
    log_g = None if log_g is None else log_g.float().contiguous()
    return inputs._replace(q=q.contiguous(), k=k.contiguous(), v=v.contiguous(), log_g=log_g)


def triton_forward(inputs: Inputs, options: Options) -> Outputs:
    """See `zoo.kernels.power.op.attend`."""
    if not _is_opaque(inputs, options):
        return forward(inputs, options)
    return Outputs(*_forward_unseen(*laid_out(inputs), *options))


def triton_backward(incoming: Incoming, inputs: Inputs, saved: Saved, options: Options) -> Gradients:
    """Gradients of all inputs."""
    if _is_opaque(inputs, options):
        incoming = incoming._replace(do=incoming.do.to(inputs.q.dtype).contiguous())
        found = Gradients(*_backward_unseen(*incoming, *laid_out(inputs), *saved, *options))
    else:
        found = backward(incoming, inputs, saved, options)
    q, k, v = (gather_heads(dx, x.shape[2], 2).to(x.dtype) for dx, x in zip(found[:3], inputs[:3], strict=True))
    return found._replace(q=q, k=k, v=v)


def rehearse(inputs: Inputs, options: Options) -> list[Launch]:
    """What a forward pass launches, and the backward pass if anything is saved for one."""
    with FakeTensorMode() as mode, rehearsal() as launches:
        inputs = Inputs._make(None if x is None else mode.from_tensor(x) for x in inputs)
        outputs = forward(inputs, options)
        if options.save_states or options.save_output:
            incoming = Incoming(torch.empty_like(outputs.o), None, None)
            backward(incoming, inputs, outputs.saved(options), options)
    return launches


_prepared: set[Hashable] = set()  # kinds of calls


def _prepare(inputs: Inputs, options: Options) -> None:
    """Before the first call of its kind, compile its kernels side by side."""
    plan, (q, *_, v) = make_plan(inputs, options), inputs[:3]
    single = plan.slots <= plan.batch
    kind = (q.device, plan.heads, q.shape[3], v.shape[3], single, *(x is None for x in inputs), *options)
    if kind not in _prepared and not INTERPRETED:
        _prepared.add(kind)
        compile_together(rehearse(inputs, options), q.device)


def _unseen(call: Callable[..., Any], prepare: Callable[..., None] | None = None) -> Callable[..., Any]:
    """A flat pass as an op that the compiler does not see through: launched there and then, as it was recorded."""
    recorder = Recorder(call, prepare=prepare, variant=wanted)

    @wraps(call)
    def run(*arguments: Any) -> tuple[Tensor, ...]:
        with unseen(arguments[0].device):
            return recorder(*arguments)

    return run


_forward_unseen = register_op("power_attention_kernels")(_unseen(flat(forward), flat(_prepare)))
_backward_unseen = register_op("power_attention_backward_kernels")(_unseen(flat(backward)))
