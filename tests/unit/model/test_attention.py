"""One choice of kernel: stand-ins for what may be installed, the real one for what always is."""

import sys
from types import ModuleType

import pytest
import torch
from torch.nn.attention import SDPBackend

from longlive.errors import ConfigError
from longlive.model import attention
from longlive.model.attention import (
    attend_with_cudnn,
    attend_with_torch,
    can_attend_with_cudnn,
    choose_attention,
    choose_newest_attention,
    load_flash2,
    load_flash3,
    load_int8,
    load_sage,
)

CUDA, CPU, MPS = (torch.device(kind) for kind in ("cuda", "cpu", "mps"))
KERNELS = {"flash_attn_interface": "flash_attn_func", "flash_attn": "flash_attn_func", "sageattention": "sageattn"}
Q, K, V = (torch.randn(2, rows, 3, 8, generator=torch.Generator().manual_seed(rows)) for rows in (5, 7, 7))


@pytest.fixture(autouse=True)
def _forgotten():
    """What was found once is remembered for the life of a process; each test begins with nothing remembered."""

    def forget() -> None:
        for choice in (load_flash3, load_flash2, load_sage, load_int8):
            choice.cache_clear()

    forget()
    yield
    forget()


def make_kitchen(called: list[str]) -> ModuleType:
    """Make a stand-in of comfy-kitchen, whose attention has heads before rows."""
    kitchen = ModuleType("comfy_kitchen")

    def int8_attention(q, k, v):
        called.append("comfy_kitchen")
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    kitchen.int8_attention, kitchen.int8_attention_is_available = int8_attention, lambda device: device.index != 1
    return kitchen


@pytest.fixture
def install(monkeypatch):
    """Put stand-ins where the named packages would be, take all others away, and say which GPU there is.

    The module "cudnn" is PyTorch's attention by cuDNN.
    """

    def put(*modules: str, capability: tuple[int, int] = (9, 0), answer=lambda out: out) -> list[str]:
        called: list[str] = []
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
        monkeypatch.setattr(attention, "can_attend_with_cudnn", lambda *_: "cudnn" in modules)
        monkeypatch.setitem(sys.modules, "comfy_kitchen", make_kitchen(called) if "comfy_kitchen" in modules else None)
        for module, function in KERNELS.items():

            def kernel(q, k, v, module=module, **options):
                called.append(f"{module} {options}" if options else module)
                return answer(attend_with_torch(q, k, v))

            stand_in = ModuleType(module)
            setattr(stand_in, function, kernel)
            monkeypatch.setitem(sys.modules, module, stand_in if module in modules else None)
        return called

    return put


@pytest.mark.parametrize(
    ("installed", "capability", "chosen"),
    [
        ((), (9, 0), "sdpa"),
        (("flash_attn",), (9, 0), "flash2"),
        (("flash_attn_interface",), (9, 0), "flash3"),
        (("flash_attn_interface", "flash_attn", "cudnn"), (9, 0), "flash3"),
        (("flash_attn", "cudnn"), (9, 0), "cudnn 91002"),
        (("cudnn",), (9, 0), "cudnn 91002"),
        (("flash_attn_interface", "flash_attn", "cudnn"), (10, 0), "cudnn 91002"),  # FlashAttention 3 is for Hopper
        (("flash_attn_interface", "flash_attn", "cudnn"), (12, 0), "cudnn 91002"),
        (("flash_attn_interface", "flash_attn", "cudnn"), (8, 9), "flash2"),  # cuDNN is not faster there
        (("flash_attn_interface", "flash_attn"), (10, 0), "flash2"),
        (("flash_attn_interface", "cudnn"), (8, 0), "sdpa"),
        (("flash_attn",), (8, 0), "flash2"),
        (("flash_attn",), (7, 5), "sdpa"),  # FlashAttention 2 begins with Ampere
        (("sageattention",), (9, 0), "sdpa"),  # quantises: a choice of the user's, never a default
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_fastest_exact_kernel_installed_is_chosen(install, installed, capability, chosen, dtype):
    called = install(*installed, capability=capability)
    attend, name = choose_attention(CUDA, dtype)
    assert torch.equal(attend(Q, K, V), attend_with_torch(Q, K, V))
    assert name == chosen
    assert called == {"flash2": ["flash_attn"], "flash3": ["flash_attn_interface"]}.get(name, [])
    assert (attend is attend_with_cudnn) == name.startswith("cudnn")


@pytest.mark.parametrize(("capability", "chosen"), [((9, 0), "flash3"), ((10, 0), "cudnn 91002"), ((8, 9), None)])
def test_only_hopper_and_later_have_a_kernel_that_replaces_a_host_s_own(install, capability, chosen):
    install("flash_attn_interface", "flash_attn", "cudnn", capability=capability)
    found = choose_newest_attention(CUDA, torch.bfloat16)
    assert (found and found[1]) == chosen
    assert choose_newest_attention(CUDA, torch.float32) is choose_newest_attention(CPU, torch.bfloat16) is None


def test_cudnn_is_preferred_for_the_call_only(monkeypatch):
    orders = []

    def attend(*_, **__):
        orders.append(torch._C._get_sdp_priority_order())
        return Q.transpose(1, 2)

    before = torch._C._get_sdp_priority_order()
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", attend)
    attend_with_cudnn(Q, K, V)
    assert orders[0][0] == int(SDPBackend.CUDNN_ATTENTION) != before[0]
    assert torch._C._get_sdp_priority_order() == before


def test_a_pytorch_that_cannot_prefer_cudnn_is_left_alone(monkeypatch):
    """`set_priority` came with 2.6."""
    monkeypatch.setattr(attention, "sdpa_kernel", lambda backends: None)
    assert not can_attend_with_cudnn(CUDA, torch.bfloat16)


def test_a_pytorch_without_cuda_has_no_cudnn():
    assert not can_attend_with_cudnn(CPU, torch.bfloat16)


@pytest.mark.parametrize(("device", "dtype"), [(CPU, torch.bfloat16), (MPS, torch.float16), (CUDA, torch.float32)])
def test_off_cuda_or_in_full_precision_it_is_pytorch_s_own(install, device, dtype):
    install(*KERNELS)
    assert choose_attention(device, dtype) == (attend_with_torch, "sdpa")


@pytest.mark.parametrize("answer", [lambda out: out, lambda out: (out, "lse")], ids=["output", "output and lse"])
def test_flash_3_may_answer_with_the_output_or_with_a_pair(install, answer):
    install("flash_attn_interface", answer=answer)
    attend, _ = choose_attention(CUDA, torch.bfloat16)
    assert torch.equal(attend(Q, K, V), attend_with_torch(Q, K, V))


def test_sage_is_used_only_on_request_and_gets_the_order_of_axes(install):
    called = install("sageattention", "flash_attn")
    attend, name = choose_attention(CUDA, torch.bfloat16, quantised=True)
    assert torch.equal(attend(Q, K, V), attend_with_torch(Q, K, V))
    assert (called, name) == (["sageattention {'tensor_layout': 'NHD'}"], "sage")


def test_comfy_kitchen_s_is_used_on_request_where_sage_is_missing(install):
    called = install("comfy_kitchen", "flash_attn")
    attend, name = choose_attention(CUDA, torch.bfloat16, quantised=True)
    assert torch.equal(attend(Q, K, V), attend_with_torch(Q, K, V))
    assert (called, name) == (["comfy_kitchen"], "int8-attention")
    assert choose_attention(CUDA, torch.bfloat16)[1] == "flash2"

    install("comfy_kitchen", "sageattention")
    load_sage.cache_clear()
    assert choose_attention(CUDA, torch.bfloat16, quantised=True)[1] == "sage"


def test_comfy_kitchen_before_0_2_40_has_no_attention(install, monkeypatch):
    install()
    monkeypatch.setitem(sys.modules, "comfy_kitchen", ModuleType("comfy_kitchen"))
    assert load_int8(CUDA) is None


@pytest.mark.parametrize(
    ("installed", "device", "dtype"),
    [
        ((), CUDA, torch.bfloat16),
        (("sageattention", "comfy_kitchen"), CPU, torch.bfloat16),
        (("sageattention", "comfy_kitchen"), CUDA, torch.float32),
        (("comfy_kitchen",), torch.device("cuda", 1), torch.bfloat16),  # its kernels are not for this GPU
    ],
)
def test_8_bit_attention_that_cannot_run_is_refused_with_the_cure(install, installed, device, dtype):
    install(*installed)
    with pytest.raises(
        ConfigError, match=rf"cannot run here \({device.type}, {dtype}\); install sageattention, or comfy-kitchen"
    ):
        choose_attention(device, dtype, quantised=True)


def test_what_is_not_installed_is_none(install):
    install()
    assert (load_flash3(), load_flash2(), load_sage(), load_int8(CUDA)) == (None, None, None, None)


@pytest.mark.parametrize("error", [ImportError("undefined symbol"), OSError("libcudart.so.12 is missing")])
def test_a_build_that_does_not_load_counts_as_not_installed(install, monkeypatch, error):
    install("flash_attn")

    def broken(_):
        raise error

    monkeypatch.setattr(attention.importlib, "import_module", broken)
    assert choose_attention(CUDA, torch.bfloat16) == (attend_with_torch, "sdpa")


def test_a_package_that_lacks_the_function_counts_as_not_installed(install, monkeypatch):
    install()
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    assert choose_attention(CUDA, torch.bfloat16) == (attend_with_torch, "sdpa")


def test_the_choice_is_made_once(install):
    install("flash_attn_interface")
    before = choose_attention(CUDA, torch.bfloat16)
    install("flash_attn")
    assert choose_attention(CUDA, torch.bfloat16) == before


def test_each_gpu_of_a_mixed_machine_has_its_own_choice(install, monkeypatch):
    install("flash_attn_interface", "flash_attn")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: [(9, 0), (8, 9), (7, 5)][device.index])
    chosen = [choose_attention(torch.device("cuda", index), torch.bfloat16)[1] for index in (0, 1, 2, 0)]
    assert chosen == ["flash3", "flash2", "sdpa", "flash3"]


@pytest.mark.parametrize(
    ("module", "quantised"), [("flash_attn", False), ("sageattention", True), ("comfy_kitchen", True)]
)
def test_the_name_of_an_installed_kernel_has_its_release(install, monkeypatch, module, quantised):
    """Another release may round differently, and the name is in the keys of blocks."""
    install(module)
    monkeypatch.setattr(attention, "_read_distributions", lambda: {module: ["kernels", "kernels"]})
    monkeypatch.setattr(attention.metadata, "version", lambda name: {"kernels": "2.8"}[name])
    _, name = choose_attention(CUDA, torch.bfloat16, quantised=quantised)
    assert name in ("flash2 kernels 2.8", "sage kernels 2.8", "int8-attention kernels 2.8")


def test_pytorch_s_own_is_softmax_of_scaled_products():
    scores = torch.einsum("btnh,bsnh->bnts", Q.double(), K.double()) / Q.shape[-1] ** 0.5
    expected = torch.einsum("bnts,bsnh->btnh", scores.softmax(-1), V.double())
    torch.testing.assert_close(attend_with_torch(Q, K, V).double(), expected, rtol=1e-5, atol=1e-6)
