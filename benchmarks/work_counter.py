"""Counts the work of a computation on the meta device: FLOPs, bytes, launches and live bytes, operation by operation.

Meta tensors have shapes, dtypes and layouts but no numbers, so the counted code is the code of production, at any size,
on any machine. What a kernel allocates for itself is not seen.
"""

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class Kind(Enum):
    """What limits an operation. A card has a rate for each kind but `POINTWISE`, which only moves bytes."""

    GEMM = auto()
    GEMM_8_BIT = auto()  # of whole numbers
    GEMM_FP8 = auto()
    ATTENTION = auto()
    ATTENTION_8_BIT = auto()
    CONVOLUTION = auto()
    CONVOLUTION_CHANNELS_LAST = auto()
    POINTWISE = auto()


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation on the device."""

    name: str
    kind: Kind
    flops: int
    num_bytes: int  # read and written
    is_double: bool = False  # whether it computes in float64


@dataclass(slots=True)
class Work:
    """The operations of a computation, and the bytes that were alive: at its beginning, and the most at once."""

    operations: list[Operation] = field(default_factory=list)
    held_bytes: int = 0
    peak_bytes: int = 0

    def __add__(self, other: "Work") -> "Work":
        """Return the operations of both. The bytes are those of this work, or of `other` if it needs more at once."""
        held, peak = max((self.peak_bytes, self.held_bytes), (other.peak_bytes, other.held_bytes))[::-1]
        return Work(self.operations + other.operations, held, peak)

    @property
    def flops(self) -> int:
        return sum(each.flops for each in self.operations)

    @property
    def launches(self) -> int:
        return len(self.operations)

    @property
    def launches_in_double(self) -> int:
        return sum(each.is_double for each in self.operations)

    @property
    def busy_bytes(self) -> int:
        """The most bytes that were alive beside those held."""
        return self.peak_bytes - self.held_bytes

    @property
    def num_bytes(self) -> int:
        return sum(each.num_bytes for each in self.operations)

    @property
    def pointwise_bytes(self) -> int:
        return sum(each.num_bytes for each in self.operations if each.kind is Kind.POINTWISE)


@dataclass(frozen=True, slots=True)
class Kernel:
    """How an operation counts that is more than pointwise. Like any other, it reads its tensors and writes its result.

    `count_flops` takes the operation's arguments and its result.
    """

    kind: Kind
    count_flops: Callable[[Sequence[Any], Tensor], int]
    rounds: int = 0  # as many of its first arguments are rounded to 8 bits, by a launch for each


def count_product(x: Tensor, weight: Tensor) -> int:
    """Count the FLOPs of x [..., K] @ weight [..., K, N]."""
    return 2 * x.numel() * weight.shape[-1]


def count_attention(q: Tensor, k: Tensor, v: Tensor, axis: int) -> int:
    """Count the FLOPs of attention of q to k and v, whose tokens are along `axis`."""
    return 2 * q.shape[:-1].numel() * k.shape[axis] * (q.shape[-1] + v.shape[-1])


# By name. Every other operation, custom ones too, counts as one pointwise launch.
KERNELS = {
    "aten::mm": Kernel(Kind.GEMM, lambda args, _: count_product(*args[:2])),
    "aten::bmm": Kernel(Kind.GEMM, lambda args, _: count_product(*args[:2])),
    "aten::addmm": Kernel(Kind.GEMM, lambda args, _: count_product(*args[1:3])),
    "aten::baddbmm": Kernel(Kind.GEMM, lambda args, _: count_product(*args[1:3])),
    "aten::_addmm_activation": Kernel(Kind.GEMM, lambda args, _: count_product(*args[1:3])),
    "aten::_int_mm": Kernel(Kind.GEMM_8_BIT, lambda args, _: count_product(*args[:2])),
    "aten::_scaled_mm": Kernel(Kind.GEMM_FP8, lambda args, _: count_product(*args[:2])),
    "aten::convolution": Kernel(Kind.CONVOLUTION, lambda args, out: 2 * out.numel() * args[1][0].numel()),
}
FREE = {  # they launch nothing, as views do
    "aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided",
    "aten::_unsafe_view", "aten::_reshape_alias", "aten::set_", "aten::resize_",
}  # fmt: skip
OVERWRITES = {"aten::copy_", "aten::fill_", "aten::zero_"}  # they do not read what they change
SHAPED_LIKE = {"aten::zeros_like", "aten::ones_like", "aten::full_like", "aten::new_zeros", "aten::new_full"}
# They touch as much of their first argument as the tensor of this place holds; None stands for the result.
SELECTIONS = {"aten::index_copy_": 3, "aten::index": None, "aten::index_select": None, "aten::embedding": None}


class WorkCounter(TorchDispatchMode):
    """Counts what happens to meta tensors in its `with` block; in a second block, counts again.

    RMS norm and attention count as one kernel each, as on a GPU; on the meta device PyTorch splits them into steps.
    """

    def __init__(self) -> None:
        super().__init__()
        self.work = Work()
        self._alive = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        self._one_kernel = _OneKernel(self)

    def __enter__(self) -> "WorkCounter":
        self.work = Work(held_bytes=self._alive, peak_bytes=self._alive)
        super().__enter__()
        self._one_kernel.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._one_kernel.__exit__(*error)
        super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = list_meta((args, kwargs))
        self._known.update(tensor.untyped_storage() for tensor in given)  # those that existed before
        out = keep_layout(func._schema.name, args, func(*args, **kwargs))
        made = list_meta(out)
        if (given or made) and not is_free(func):
            self._append(func, args, kwargs, made)
        self._hold(made)
        return out

    def _append(self, func: torch._ops.OpOverload, args: Sequence, kwargs: dict, made: Sequence[Tensor]) -> None:
        operation = describe_operation(func, args, kwargs, made)
        kernel = KERNELS.get(operation.name)
        rounded = args[: kernel.rounds] if kernel else ()
        less = sum(count_bytes([tensor]) - tensor.numel() for tensor in rounded)  # it reads a byte for each number
        self.work.operations += [describe_rounding(tensor) for tensor in rounded]
        self.work.operations.append(replace(operation, num_bytes=operation.num_bytes - less))

    def _hold(self, made: Sequence[Tensor]) -> None:
        """Count the bytes of new storages until they are freed."""
        for storage in (tensor.untyped_storage() for tensor in made):
            if storage not in self._known:
                self._known.add(storage)
                self._alive += storage.nbytes()
                weakref.finalize(storage, self._release, storage.nbytes()).atexit = False
        self.work.peak_bytes = max(self.work.peak_bytes, self._alive)

    def _release(self, num_bytes: int) -> None:
        self._alive -= num_bytes


class _OneKernel(TorchFunctionMode):
    """Counts RMS norm and attention as one kernel each."""

    def __init__(self, counter: WorkCounter) -> None:
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func, types, args=(), kwargs=None):
        read = list_meta((args, kwargs))
        if func is F.scaled_dot_product_attention and read:
            return self._count("attention", Kind.ATTENTION, count_attention(*read[:3], axis=-2), read)
        if func in (torch.rms_norm, F.rms_norm) and read:
            return self._count("rms_norm", Kind.POINTWISE, 0, read)
        return func(*args, **(kwargs or {}))

    def _count(self, name: str, kind: Kind, flops: int, read: Sequence[Tensor]) -> Tensor:
        """Count a kernel that reads tensors and writes one like the first; return that."""
        out = torch.empty_like(read[0])
        self.counter.work.operations.append(Operation(name, kind, flops, count_bytes([*read, out])))
        return out


def count_work(compute: Callable[[], object]) -> Work:
    """Count the work of a function on meta tensors."""
    with torch.no_grad(), WorkCounter() as counter:
        compute()
    return counter.work


def is_free(func: torch._ops.OpOverload) -> bool:
    """Whether an operation launches nothing: it makes a view, or memory without contents."""
    makes_view = any(each.alias_info and not each.alias_info.is_write for each in func._schema.returns)
    return makes_view or func._schema.name in FREE


def describe_operation(func: torch._ops.OpOverload, args: Sequence, kwargs: dict, made: Sequence[Tensor]) -> Operation:
    """Describe what an operation did, from its arguments and results."""
    name, given = func._schema.name, list_meta((args, kwargs))
    is_double = any(tensor.dtype is torch.float64 for tensor in (*given, *made))
    num_bytes = count_moved_bytes(func, args, kwargs, made)
    kernel = KERNELS.get(name)
    if not kernel:
        return Operation(name, Kind.POINTWISE, 0, num_bytes, is_double=is_double)
    kind = kernel.kind
    if kind is Kind.CONVOLUTION and any(map(is_channels_last, args[:2])):
        kind = Kind.CONVOLUTION_CHANNELS_LAST
    return Operation(name, kind, kernel.count_flops(args, made[0]), num_bytes, is_double=is_double)


def describe_rounding(x: Tensor) -> Operation:
    """Describe the rounding of a tensor to 8 bits."""
    return Operation("round to 8 bits", Kind.POINTWISE, 0, count_bytes([x]) + x.numel())


def count_moved_bytes(func: torch._ops.OpOverload, args: Sequence, kwargs: dict, made: Sequence[Tensor]) -> int:
    """Count the bytes that an operation reads and writes."""
    name = func._schema.name
    if name in SELECTIONS:
        place = SELECTIONS[name]
        return 2 * count_bytes([args[place] if place else made[0]])
    changed = list(_iter_changed(func, args, kwargs))
    overwritten = {id(tensor) for tensor, is_out in changed if is_out or name in OVERWRITES}
    given = [] if name in SHAPED_LIKE else list_meta((args, kwargs))
    read = [tensor for tensor in given if id(tensor) not in overwritten]
    written = {id(tensor): tensor for tensor in (*(tensor for tensor, _ in changed), *made)}
    return count_bytes([*read, *written.values()])


def _iter_changed(func: torch._ops.OpOverload, args: Sequence, kwargs: dict) -> Iterator[tuple[Tensor, bool]]:
    """Yield the tensors that an operation changes, and whether they are given for its result only."""
    for i, argument in enumerate(func._schema.arguments):
        value = args[i] if i < len(args) else kwargs.get(argument.name)
        if argument.alias_info and argument.alias_info.is_write and isinstance(value, Tensor):
            yield value, argument.is_out


def list_meta(values: object) -> list[Tensor]:
    """List the meta tensors in nested lists, tuples and dictionaries."""
    if isinstance(values, Tensor):
        return [values] if values.is_meta else []
    if isinstance(values, dict):
        values = values.values()
    elif not isinstance(values, (list, tuple)):
        return []
    return [tensor for value in values for tensor in list_meta(value)]


def count_bytes(tensors: Sequence[Tensor]) -> int:
    """Count the bytes of tensors; what is expanded counts once."""
    return sum(
        math.prod(size for size, stride in zip(x.shape, x.stride(), strict=True) if stride) * x.itemsize
        for x in tensors
    )


CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the number of axes


def is_channels_last(x: Tensor) -> bool:
    layout = CHANNELS_LAST.get(x.dim())
    return layout is not None and x.is_contiguous(memory_format=layout) and not x.is_contiguous()


def keep_layout(name: str, args: Sequence, out: Any) -> Any:
    """Give a convolution's result the layout that cuDNN gives it: channels last if its input or weight has them last.

    The meta device does not.
    """
    if name == "aten::convolution" and any(map(is_channels_last, args[:2])):
        return torch.empty_like(out, memory_format=CHANNELS_LAST[out.dim()])
    return out
