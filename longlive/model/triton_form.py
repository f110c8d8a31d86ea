"""The form of NVIDIA's GPUs of what is between matrices and attention: kernels of our own, and cuBLAS for GELU.

The kernels are operators of PyTorch, so a compiler does not look into them, and on the meta device they do nothing.
Dimension key: B batch, F frames, T tokens of one pass, D model width, N heads, H channels per head, P = H / 2 pairs.
"""

import importlib
import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch
from torch import Tensor, nn

from .attention import AMPERE, get_generation, name_release
from .dtypes import COMPUTE_DTYPES
from .fused import (
    NOTHING,
    PLAIN,
    Addend,
    Lend,
    Loan,
    Modulation,
    Piece,
    Pointwise,
    lend_weights,
)
from .rope import make_table
from .wan import Layer, make_mlp

log = logging.getLogger(__name__)

PACKAGE = "triton"
WITHOUT_KERNELS = "the network runs without its fused kernels and, by calculation, takes about a tenth longer"
MOST_ROUNDINGS = 16  # by which the kernels may differ from the plain form
# ComfyUI and a program may both import this module, and a host may do so again.
OPERATORS = torch.library.Library(f"longlive_{secrets.token_hex(4)}", "DEF")
KERNELS = {
    "add_and_normalise": "(Tensor x, Tensor? y, Tensor? gate, Tensor? factor, Tensor? shift, float eps, "
    "*, Tensor(a!)? total, Tensor(b!) out) -> ()",
    "normalise_and_rotate": "(Tensor x, Tensor? weight, float eps, Tensor table, *, Tensor(a!) out) -> ()",
}


@cache
def load_kernels() -> ModuleType:
    return importlib.import_module(f"{__package__}.triton_kernels")


def define_operator(name: str) -> torch._ops.OpOverload:
    """Make an operator of a kernel."""

    def launch(*args, **out) -> None:
        getattr(load_kernels(), name)(*args, *out.values())

    OPERATORS.define(name + KERNELS[name])
    OPERATORS.impl(name, launch, "CompositeExplicitAutograd")
    OPERATORS.impl(name, lambda *args, **out: None, "Meta")
    return getattr(getattr(torch.ops, OPERATORS.ns), name).default


add_and_normalise, normalise_and_rotate = map(define_operator, KERNELS)


@dataclass(frozen=True)
class TritonForm(Pointwise):
    """The form of NVIDIA's GPUs. Where a layer is more than a class of PyTorch, that piece is computed plainly."""

    def rotate(self, x_BTNH: Tensor, table_T1P22: Tensor) -> Tensor:
        is_whole = x_BTNH.stride()[2:] == (x_BTNH.shape[-1], 1)
        return self._rotate(x_BTNH if is_whole else x_BTNH.contiguous(), NOTHING, table_T1P22)

    def normalise_and_rotate(self, norm: Layer, x_BTD: Tensor, table_T1P22: Tensor, heads: int) -> Tensor:
        loan, x_BTD = self._borrow_or_normalise(norm, x_BTD)
        turned_BTNH = self._rotate(x_BTD.unflatten(-1, (heads, -1)), loan, table_T1P22)
        loan.give_back()
        return turned_BTNH

    def normalise_and_write(self, norm: Layer, x_BTD: Tensor, table_T1P22: Tensor, pieces: Sequence[Piece]) -> None:
        loan, x_BTD = self._borrow_or_normalise(norm, x_BTD)
        x_BTNH = x_BTD.unflatten(-1, pieces[0].room_BTNH.shape[2:])
        for tokens, room_BTNH in pieces:
            normalise_and_rotate(x_BTNH[:, tokens], loan.weight, loan.eps or 0.0, table_T1P22[tokens], out=room_BTNH)
        loan.give_back()

    def _borrow_or_normalise(self, norm: Layer, x_BTD: Tensor) -> tuple[Loan, Tensor]:
        """Borrow the weight of an RMS norm; if it is not lent, return a loan of nothing and what the norm makes."""
        loan = self.lend(norm, nn.RMSNorm, x_BTD)
        if loan.eps and loan.weight is not None and loan.weight.dtype == x_BTD.dtype:
            return loan, x_BTD.contiguous()
        loan.give_back()
        return NOTHING, norm(x_BTD).contiguous()

    def _rotate(self, x_BTNH: Tensor, norm: Loan, table_T1P22: Tensor) -> Tensor:
        turned_BTNH = torch.empty_like(x_BTNH, memory_format=torch.contiguous_format)
        normalise_and_rotate(x_BTNH, norm.weight, norm.eps or 0.0, table_T1P22, out=turned_BTNH)
        return turned_BTNH

    def add_and_normalise(
        self, x_BTD: Tensor, residual: Addend | None, norm: Layer, modulation: Modulation | None = None
    ) -> tuple[Tensor, Tensor]:
        loan = self.lend(norm, nn.LayerNorm, x_BTD)
        rows = list_rows(loan, modulation, x_BTD.dtype)
        if rows is None:
            loan.give_back()
            return super().add_and_normalise(x_BTD, residual, norm, modulation)
        x_RD = x_BTD.contiguous().flatten(0, 1)
        normal_RD, total_RD, y_RD, gate_GD = torch.empty_like(x_RD), None, None, None
        if residual:
            total_RD, y_RD = torch.empty_like(x_RD), residual.y_BTD.contiguous().flatten(0, 1)
            gate_GD = None if residual.gate_BFD is None else residual.gate_BFD.flatten(0, 1)
        add_and_normalise(x_RD, y_RD, gate_GD, *rows, loan.eps, total=total_RD, out=normal_RD)
        loan.give_back()
        return x_BTD if total_RD is None else total_RD.view_as(x_BTD), normal_RD.view_as(x_BTD)

    def feed_forward(self, layers: Layer, x_BTD: Tensor) -> Tensor:
        """Compute GELU in the epilogue of the product before it. On CUDA it is the tanh form, on a CPU it is not."""
        borrowed = self.borrow_before_gelu(layers, x_BTD)
        if borrowed is None:
            return layers(x_BTD)
        (weight, bias), loan, last = borrowed
        hidden_TD = torch.ops.aten._addmm_activation(bias, x_BTD.flatten(0, 1), weight.t(), use_gelu=True)
        loan.give_back()
        return last(hidden_TD.unflatten(0, x_BTD.shape[:2]))


def list_rows(
    loan: Loan, modulation: Modulation | None, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None] | None:
    """List the rows [G, D] of factor and shift that follow a norm: its weights or a modulation.

    None if both do, or the norm is not lent.
    """
    if not loan.eps:
        return None
    if loan.weight is None:
        return (modulation.factor_BFD.flatten(0, 1), modulation.shift_BFD.flatten(0, 1)) if modulation else (None, None)
    if loan.bias is None or modulation or loan.weight.dtype != dtype or loan.bias.dtype != dtype:
        return None
    return loan.weight.unsqueeze(0), loan.bias.unsqueeze(0)


TRITON = TritonForm(PACKAGE)


@cache
def make_triton_form(lend: Lend = lend_weights) -> TritonForm:
    """Make the form, named with the release of Triton: another one may round differently."""
    return TritonForm(name_release(PACKAGE, PACKAGE), lend)


@cache
def is_triton_usable(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels run on an NVIDIA GPU; says once why they do not."""
    is_nvidia = device.type == "cuda" and torch.version.hip is None
    if not is_nvidia or dtype not in COMPUTE_DTYPES.values() or get_generation(device) < AMPERE:
        return False
    try:
        try_kernels(device, dtype)
    except torch.cuda.OutOfMemoryError:
        raise
    except ArithmeticError as error:
        log.warning("%s, because %s on this GPU; please report it", WITHOUT_KERNELS, error)
        return False
    except Exception as error:  # a compiler fails in many ways, and without its kernels the network only is slower
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        cure = "install triton, on Windows triton-windows, and a C compiler"
        log.warning("%s, because Triton does not work here (%s); %s", WITHOUT_KERNELS, reason, cure)
        return False
    return True


@torch.no_grad()
def try_kernels(device: torch.device, dtype: torch.dtype) -> None:
    """Compute a little of everything and compare it with the plain form. Raises ArithmeticError if they differ.

    The products are exact, so that only their epilogue counts, whatever the precision of products is.
    """
    x, y, gate, factor, shift = torch.randn(5, 1, 4, 16, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    addend, modulation = Addend(y, gate[:, :2]), Modulation(factor[:, :2], shift[:, :2])
    plain_norm = nn.LayerNorm(16, elementwise_affine=False)
    norm = nn.RMSNorm(16, 1e-6, device=device, dtype=dtype)
    norm.weight.copy_(y[0, 0])
    table = make_table(7, 2, (1, 2), 8, device)
    layers = make_mlp(16, 16, 16, nn.GELU("tanh"), device=device, dtype=dtype)
    for weight in layers.parameters():
        weight.copy_(torch.eye(16) if weight.dim() == 2 else torch.zeros(16))
    for name, compute in (
        ("norm", lambda form: form.add_and_normalise(x, addend, plain_norm, modulation)[1]),
        ("rotation", lambda form: form.normalise_and_rotate(norm, x, table, 2)),
        ("GELU", lambda form: form.feed_forward(layers, 3 * x)),
    ):
        found, expected = (compute(form).float() for form in (TRITON, PLAIN))
        difference = float((found - expected).norm() / expected.norm())
        if not difference < MOST_ROUNDINGS * torch.finfo(dtype).eps:
            raise ArithmeticError(f"their {name} differs from PyTorch's by {difference:.1e}")
