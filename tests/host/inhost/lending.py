"""Checks of the weights that ComfyUI's layers lend to kernels of ours; run inside a host."""

from dataclasses import replace

import comfy.ops
import torch
import torch.nn.functional as F
from comfyui_longlive.longlive.model.fused import NOTHING, PLAIN, Pointwise
from comfyui_longlive.longlive.rollout.sampler import Sampler
from comfyui_longlive.nodes.host.lending import lend_host_weights
from comfyui_longlive.nodes.host.model import as_causal_model
from compute import begin_session
from identity import load_model
from torch import Tensor, nn

WIDTH = 16


def fill(layer: nn.Module) -> nn.Module:
    for weight in layer.parameters():
        weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).to(weight.dtype)
    return layer.requires_grad_(False)


def compute(layer, kind: type[nn.Module], x: Tensor) -> Tensor:
    loan = lend_host_weights(layer, kind, x)
    assert loan is not NOTHING
    if kind is nn.Linear:
        y = F.linear(x, loan.weight, loan.bias)
    elif kind is nn.RMSNorm:
        y = F.rms_norm(x, (WIDTH,), loan.weight, loan.eps)
    else:
        y = F.layer_norm(x, (WIDTH,), loan.weight, loan.bias, loan.eps)
    loan.give_back()
    return y


def check_layers_lend_what_they_use() -> None:
    x = torch.randn(1, 5, WIDTH, generator=torch.Generator().manual_seed(1))
    for operations, dtype in ((comfy.ops.disable_weight_init, torch.float32), (comfy.ops.manual_cast, torch.bfloat16)):
        layers = [
            (nn.Linear, fill(operations.Linear(WIDTH, WIDTH, dtype=dtype))),
            (nn.RMSNorm, fill(operations.RMSNorm(WIDTH, eps=1e-6, elementwise_affine=True, dtype=dtype))),
            (nn.LayerNorm, fill(operations.LayerNorm(WIDTH, 1e-6, dtype=dtype))),
            (nn.LayerNorm, operations.LayerNorm(WIDTH, 1e-6, elementwise_affine=False)),
        ]
        for kind, layer in layers:
            before = layer(x)
            assert torch.equal(compute(layer, kind, x), before)
            if layer.weight is not None:
                layer.weight_function = [lambda weight: 2 * weight]  # as a LoRA on an offloaded layer
                assert torch.equal(compute(layer, kind, x), layer(x))
                assert not torch.equal(layer(x), before)
            layer.register_forward_hook(lambda *_: None)
            assert lend_host_weights(layer, kind, x) is NOTHING
    assert lend_host_weights(comfy.ops.fp8_ops.Linear(WIDTH, WIDTH), nn.Linear, x) is NOTHING
    assert lend_host_weights(nn.Linear(WIDTH, WIDTH), nn.Linear, x) is not NOTHING


def check_a_block_with_lent_weights_is_the_block_without() -> None:
    patcher = load_model()
    session, model, lent = begin_session(patcher), as_causal_model(patcher), []

    def lend(*arguments):
        lent.append(lend_host_weights(*arguments))
        return lent[-1]

    assert model.pointwise is PLAIN  # on a CPU
    forms = PLAIN, Pointwise("lent", lend)
    plain, found = (Sampler(replace(model, pointwise=form)).sample(session, 2).latents() for form in forms)
    assert torch.equal(plain, found)
    assert lent
    assert not any(loan is NOTHING for loan in lent)
