"""The real kernels, where there is a GPU."""

import pytest
import tiny
import torch

from longlive.model import attention
from longlive.model.causal import CausalWan
from longlive.model.eight_bit import EightBit, EightBitLinear
from longlive.model.wan import Geometry
from longlive.rollout.sampler import Sampler
from longlive.weights.quantise import quantise_linear

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]
LIKE_WAN = Geometry(dim=256, ffn_dim=512, num_heads=2, num_layers=2, freq_dim=64, text_dim=10, text_len=6)


@pytest.mark.parametrize(("kernel", "tolerance"), [("flash3", 2e-2), ("flash2", 2e-2), ("sage", 1e-1)])
def test_a_kernel_computes_attention(kernel, tolerance):
    attend = getattr(attention, f"load_{kernel}")()
    if attend is None:
        pytest.skip(f"{kernel} is not installed")
    q, k, v = (torch.randn(1, tokens, 12, 128, device="cuda", dtype=torch.bfloat16) for tokens in (390, 1560, 1560))
    torch.testing.assert_close(attend(q, k, v), attention.attend_with_torch(q, k, v), rtol=tolerance, atol=tolerance)


def test_comfy_kitchen_computes_attention_in_8_bits():
    attend = attention.load_int8(torch.device("cuda"))
    if attend is None:
        pytest.skip("comfy-kitchen has no attention here")
    q, k, v = (torch.randn(1, tokens, 12, 128, device="cuda", dtype=torch.bfloat16) for tokens in (390, 1560, 1560))
    torch.testing.assert_close(attend(q, k, v), attention.attend_with_torch(q, k, v), rtol=1e-1, atol=1e-1)


@pytest.mark.parametrize("form", EightBit)
def test_comfy_kitchen_computes_linears_in_8_bits(form):
    pytest.importorskip("comfy_kitchen")
    linear = torch.nn.Linear(1536, 8960, device="cuda", dtype=torch.bfloat16).requires_grad_(False)
    tensors = quantise_linear("x.weight", linear.weight, form)
    layer = EightBitLinear(linear, form, tuple(tensors["x.weight_scale"].shape))
    layer.weight, layer.weight_scale = tensors["x.weight"], tensors["x.weight_scale"]
    x = torch.randn(1, 390, 1536, device="cuda", dtype=torch.bfloat16)
    found, expected = layer(x), linear(x)
    assert (found - expected).norm() < 0.05 * expected.norm()


def test_cudnn_computes_attention():
    if not attention.can_attend_with_cudnn(torch.device("cuda"), torch.bfloat16):
        pytest.skip("there is no attention by cuDNN")
    q, k, v = (torch.randn(1, tokens, 12, 128, device="cuda", dtype=torch.bfloat16) for tokens in (390, 1560, 1560))
    with torch.profiler.profile() as profile:
        found = attention.attend_with_cudnn(q, k, v)
    assert any("cudnn" in event.key for event in profile.key_averages())
    torch.testing.assert_close(found, attention.attend_with_torch(q, k, v), rtol=2e-2, atol=2e-2)


def test_law_3_holds_on_the_gpu():
    cpu = tiny.model(LIKE_WAN)
    model = CausalWan.of_tree(cpu.tree.to("cuda", torch.bfloat16))
    video = tiny.session(dtype=torch.bfloat16)
    whole = Sampler(model).sample(video, 8)
    parts = Sampler(model).sample(Sampler(model).sample(video, 5), 3)
    assert torch.equal(whole.latents(), parts.latents())
    assert torch.isfinite(whole.latents()).all()
