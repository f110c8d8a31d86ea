"""The real kernels, where there is a GPU."""

import pytest
import speed
import tiny
import torch
from machine import Machine

from longlive.config import RolloutConfig
from longlive.model import attention
from longlive.model.causal import CausalWan
from longlive.model.compiled import compile_model
from longlive.model.eight_bit import EightBit, EightBitLinear
from longlive.model.fused import PLAIN, Addend, Modulation, Piece
from longlive.model.host_copy import HostCopy
from longlive.model.rope import make_table
from longlive.model.triton_form import TRITON, is_triton_usable
from longlive.model.wan import Geometry, make_mlp
from longlive.rollout.noise import seed_noise
from longlive.rollout.rollout import Rollout
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


FORMS = [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)]


@pytest.fixture
def with_triton() -> None:
    if not is_triton_usable(torch.device("cuda"), torch.bfloat16):
        pytest.skip("Triton does not work here")


def make_random(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to("cuda", dtype)


@pytest.mark.usefixtures("with_triton")
@pytest.mark.parametrize(("dtype", "tolerance"), FORMS)
def test_kernels_normalise_and_rotate_into_the_ring(dtype, tolerance):
    heads, channels, tokens, width = 12, 128, 3 * 30 * 52, 1536
    norm = torch.nn.RMSNorm(width, 1e-6, device="cuda", dtype=dtype).requires_grad_(False)
    x, table = make_random(1, tokens, width, dtype=dtype), make_table(7, 3, (30, 52), channels, "cuda")
    rings = [torch.zeros(1, 2 * tokens, heads, channels, device="cuda", dtype=dtype) for _ in range(2)]
    for form, ring in zip((TRITON, PLAIN), rings, strict=True):
        pieces = [Piece(slice(0, 1560), ring[:, -1560:]), Piece(slice(1560, tokens), ring[:, : tokens - 1560])]
        form.normalise_and_write(norm, x, table, pieces)
    torch.testing.assert_close(*rings, rtol=tolerance, atol=tolerance)
    assert torch.equal(TRITON.normalise_and_rotate(norm, x, table, heads)[:, :1560], rings[0][:, -1560:])


@pytest.mark.usefixtures("with_triton")
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), FORMS)
def test_kernels_add_a_residual_and_normalise_the_sum(dtype, tolerance, gated):
    x, y = (make_random(1, 4680 + i, 1536, dtype=dtype)[:, i:] for i in (0, 1))
    gate, factor, shift = make_random(1, 3, 6, 1536, dtype=dtype).unbind(2)[:3]
    plain_norm = torch.nn.LayerNorm(1536, 1e-6, elementwise_affine=False)
    norm = torch.nn.LayerNorm(1536, 1e-6, device="cuda", dtype=dtype).requires_grad_(False)
    for layer, modulation in ((plain_norm, Modulation(factor, shift)), (norm, None)):
        residual = Addend(y, gate if gated else None)
        found, expected = (form.add_and_normalise(x, residual, layer, modulation) for form in (TRITON, PLAIN))
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=4 * tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), FORMS)
def test_gelu_in_the_epilogue_has_the_tanh_form(dtype, tolerance):
    """The other form differs by up to 5e-4, which float32 shows."""
    layers = make_mlp(256, 512, 256, torch.nn.GELU("tanh"), device="cuda", dtype=dtype).requires_grad_(False)
    x = 3 * make_random(1, 390, 256, dtype=dtype)
    with torch.profiler.profile() as profile:
        found = TRITON.feed_forward(layers, x)
    assert "aten::_addmm_activation" in {event.key for event in profile.key_averages()}
    torch.testing.assert_close(found, layers(x), rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("with_triton")
def test_the_network_on_a_gpu_computes_with_the_kernels_what_it_computes_plainly():
    model = CausalWan.of_tree(tiny.model(LIKE_WAN).tree.to("cuda", torch.float32))
    assert "triton" in model.kernel
    plain = CausalWan.of_tree(tiny.model(LIKE_WAN).tree.to("cuda", torch.float32))
    object.__setattr__(plain, "pointwise", PLAIN)
    latents = []
    for each in (model, plain):
        rollout = Rollout(each, RolloutConfig(), (1, 16, 4, 6))
        text, noise, made = each.read_prompt(tiny.prompt(0).pad()), seed_noise(0, (1, 3, 16, 4, 6), torch.float32), []
        for block in range(6):  # the window rolls
            made.append(rollout.denoise(3 * block, text, noise, block))
            rollout.clean_pass(3 * block, made[-1], text)
        rollout.recache(18, torch.cat(made, 1), text)
        latents.append(rollout.denoise(18, text, noise, 6))
    torch.testing.assert_close(*latents, rtol=1e-3, atol=1e-3)


def test_a_copy_to_the_host_waits_for_nothing_and_is_complete_when_it_is_read():
    x = torch.randn(1 << 20, device="cuda")
    expected = x.cpu()
    torch.cuda.set_sync_debug_mode("error")
    try:
        copy = HostCopy(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    x.zero_()  # comes after the copy
    assert copy.read().is_pinned()
    assert torch.equal(copy.read(), expected)


def test_law_3_holds_on_the_gpu():
    cpu = tiny.model(LIKE_WAN)
    model = CausalWan.of_tree(cpu.tree.to("cuda", torch.bfloat16))
    video = tiny.session(dtype=torch.bfloat16)
    whole = Sampler(model).sample(video, 8)
    parts = Sampler(model).sample(Sampler(model).sample(video, 5), 3)
    assert torch.equal(whole.latents(), parts.latents())
    assert torch.isfinite(whole.latents()).all()


@pytest.mark.filterwarnings("default")  # of how PyTorch uses itself
def test_inductor_computes_what_the_network_does_as_it_is_and_the_same_in_two_samplers():
    plain = CausalWan.of_tree(tiny.model(LIKE_WAN).tree.to("cuda", torch.float32))
    model, said = compile_model(plain)
    assert said == "compiled by inductor"
    video = tiny.session()
    whole, expected = (Sampler(each).sample(video, 8).latents() for each in (model, plain))
    torch.testing.assert_close(whole, expected, rtol=1e-3, atol=1e-3)
    parts = Sampler(model).sample(Sampler(model).sample(video, 6), 2)
    assert torch.equal(parts.latents(), whole)


def test_the_benchmark_of_speed_measures_the_gpu():
    size, device = speed.Size(LIKE_WAN, 2, (4, 6), torch.bfloat16), torch.device("cuda")
    bench = speed.Bench(Machine(device), size, print)
    bench.measure(rounds=1, minutes=0.05, reference=None)
    peaks = [float(bench.rows[f"{name}: peak memory, GB"]) for name in ("exact", "exact, full VAE", "exact, tiny VAE")]
    weights = sum(weight.nbytes for weight in bench.task.tree.parameters())
    assert weights / 1e9 - 0.005 <= peaks[0] <= min(peaks[1:])
