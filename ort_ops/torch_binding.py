"""The kernels for GPUs as operators of PyTorch, `torch.ops.dqexport`.

They take CUDA tensors, with a library that nvcc compiles once for the GPU, and CPU tensors, for
which g++ compiles the same kernels: slow, and meant for tests. The modules `op.py` beside each
launcher say what is computed; tensors are contiguous, activations fp32, fp16 or bf16.
"""

import ctypes
import functools
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from ort_ops.attention.launch import Call as AttentionCall
from ort_ops.build_cuda import CudaBuildError, prebuild
from ort_ops.cached_attention.launch import Call as CachedCall
from ort_ops.cached_attention.launch import Operands, Results
from ort_ops.kv_update.launch import Call as KvUpdateCall
from ort_ops.linear_w4a8.launch import Call as LinearCall
from ort_ops.linear_w4a8.launch import WeightPointers

TYPES = (torch.float32, torch.float16, torch.bfloat16)  # as `Float` numbers them
CALLS: dict[str, type[ctypes.Structure]] = {
    "linear": LinearCall, "attention": AttentionCall, "cached_attention": CachedCall,
    "kv_update": KvUpdateCall,
}  # fmt: skip


def missing(device: torch.device) -> str | None:
    """Why there are no kernels for a device; None: there are, compiled where they were not yet."""
    try:
        library_for(device)
    except CudaBuildError as error:
        return str(error)
    return None


def library_for(device: torch.device) -> ctypes.CDLL:
    """The C functions of `cuda_library`. Raises CudaBuildError."""
    if device.type != "cuda":
        return _library(None)
    major, minor = torch.cuda.get_device_capability(device)
    return _library(10 * major + minor)


@functools.cache
def _library(sm: int | None) -> ctypes.CDLL:
    library = ctypes.CDLL(str(prebuild(sm)))
    for name, call in CALLS.items():
        size = getattr(library, f"size_of_{name}")
        size.restype = ctypes.c_size_t
        assert size() == ctypes.sizeof(call), name
        if name != "kv_update":
            getattr(library, f"{name}_workspace").restype = ctypes.c_size_t
    return library


@torch.library.custom_op("dqexport::linear", mutates_args=())
def linear(
    x: Tensor, codes: Sequence[Tensor], scales: Sequence[Tensor], steps: Sequence[Tensor],
    bias: Tensor | None, weight_bits: int, activation_bits: int, channel: bool, group: int,
    activation_group: int, step: float,
) -> Tensor:  # fmt: skip
    """y (…, N) of x (…, K) and one weight, or a gated pair's two: see linear_w4a8/op.py.

    codes int8 (K, N), of 4 bits uint8 (K · N / 2,) as `pack_int4` packs them; steps: none, or as
    many as weights. Raises ValueError on tensors that do not fit.
    """
    depth, width = x.shape[-1], scales[0].shape[-1]
    _check_linear(depth, width, codes, scales, steps, bias, weight_bits, channel, group)
    call = LinearCall(
        x.numel() // max(depth, 1), depth, width, group, activation_group, step, weight_bits,
        activation_bits, channel, len(codes) == 2, _type(x), _type(scales[0]),
    )  # fmt: skip
    y = x.new_empty((*x.shape[:-1], width))
    no_steps: list[Tensor | None] = [None] * len(codes)
    parts = [_pointers(x, *each) for each in (codes, scales, steps or no_steps)]
    weights = (WeightPointers * len(codes))(*map(WeightPointers, *parts))
    given, added, into = _pointers(x, x, bias, y)
    _launch("linear", x, call, given, weights, added, into)
    return y


@linear.register_fake
def _(x: Tensor, codes: Sequence[Tensor], scales: Sequence[Tensor], *_: object) -> Tensor:
    return x.new_empty((*x.shape[:-1], scales[0].shape[-1]))


@torch.library.custom_op("dqexport::attention", mutates_args=())
def attention(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor, common: Tensor, v_scale: Tensor,
    v_zero: Tensor, heads: int, q_top: int, k_top: int, v_top: int, p_top: int,
) -> Tensor:  # fmt: skip
    """y (B, Q, H · K) of q (B, Q, H · K), k and v (B, kv heads, S, K): see attention/op.py.

    Raises ValueError on tensors that do not fit.
    """
    rows, kv_heads, keys, width = k.shape
    queries = q.shape[1]
    _expect("q", q, (rows, queries, heads * width))
    _expect("v", v, k.shape)
    _expect("visible", visible, (rows, 1, queries, keys), torch.bool)
    _expect("common", common, (rows, keys), torch.bool)
    if v_scale.numel() != kv_heads * width or v_zero.numel() != kv_heads * width:
        raise ValueError(f"{v_scale.numel()} scales of values for {kv_heads} heads of {width}")
    call = AttentionCall(
        rows, heads, kv_heads, queries, keys, width, q_top, k_top, v_top, p_top, _type(q)
    )
    y = torch.empty_like(q)
    inputs = (q, k, v, visible, common, v_scale, v_zero)
    _launch("attention", q, call, *_pointers(q, *inputs, y))
    return y


@attention.register_fake
def _(q: Tensor, *_: object) -> Tensor:
    return torch.empty_like(q)


@torch.library.custom_op(
    "dqexport::cached_attention", mutates_args=("k_cache", "k_scales", "v_cache")
)
def cached_attention(
    q: Tensor, k: Tensor, v: Tensor, k_cache: Tensor, k_scales: Tensor, v_cache: Tensor,
    start: Tensor, key_block: Tensor, reach: Tensor, k_mean: Tensor, v_scale: Tensor,
    v_zero: Tensor, cos: Tensor | None, sin: Tensor | None, heads: int, q_top: int, p_top: int,
    k_bits: int, v_bits: int,
) -> Tensor:  # fmt: skip
    """y (B, Q, H · K); the caches are written in place: see cached_attention/op.py.

    Raises ValueError on tensors that do not fit.
    """
    rows, queries, depth = q.shape
    kv_heads, capacity = k_scales.shape[1:3]
    width = depth // heads
    bytes_of = {4: width // 2, 8: width, 16: width}
    for name, each in (("k", k), ("v", v)):
        _expect(name, each, (rows, queries, kv_heads * width))
    _expect("k_cache", k_cache, (rows, kv_heads, capacity, bytes_of[k_bits]), torch.int8)
    _expect("k_scales", k_scales, (rows, kv_heads, capacity, 1), q.dtype)
    of_values = q.dtype if v_bits == 16 else torch.int8
    _expect("v_cache", v_cache, (rows, kv_heads, capacity, bytes_of[v_bits]), of_values)
    _expect("start", start, (rows,), torch.int64)
    _expect("key_block", key_block, (rows, capacity), torch.int32)
    _expect("reach", reach, (rows, queries), torch.int32)
    turned = 0 if cos is None else 2 * cos.shape[-1]
    call = CachedCall(
        rows, heads, kv_heads, queries, capacity, width, q_top, p_top, k_bits, v_bits, turned,
        _type(q),
    )  # fmt: skip
    y = torch.empty_like(q)
    inputs = (q, k, v, k_cache, k_scales, v_cache, start, key_block, reach, k_mean, v_scale, v_zero)
    operands = Operands(*_pointers(q, *inputs, cos, sin))
    results = Results(*_pointers(q, y, k_cache, k_scales, v_cache))
    _launch("cached_attention", q, call, ctypes.byref(operands), ctypes.byref(results))
    return y


@cached_attention.register_fake
def _(q: Tensor, *_: object) -> Tensor:
    return torch.empty_like(q)


@torch.library.custom_op("dqexport::kv_update", mutates_args=("cache",))
def kv_update(cache: Tensor, fresh: Tensor, start: Tensor) -> None:
    """Writes fresh (B, H, Q, K) into cache (B, H, C, K): see kv_update/op.py.

    Raises ValueError on tensors that do not fit.
    """
    rows, heads, capacity, width = cache.shape
    _expect("fresh", fresh, (rows, heads, fresh.shape[2], width), cache.dtype)
    _expect("start", start, (rows,), torch.int64)
    size = width * cache.element_size()
    call = KvUpdateCall(rows, heads, capacity, fresh.shape[2], size)
    _launch("kv_update", cache, call, *_pointers(cache, cache, fresh, start, cache))


@kv_update.register_fake
def _(cache: Tensor, fresh: Tensor, start: Tensor) -> None:
    return None


def _launch(name: str, on: Tensor, call: ctypes.Structure, *arguments: object) -> None:
    """Starts kernels on the stream of PyTorch, where the tensor `on` lies."""
    library, on_gpu, stream = library_for(on.device), on.device.type == "cuda", None
    with torch.cuda.device(on.device) if on_gpu else nullcontext():  # sizes depend on the GPU
        if on_gpu:
            stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        if name != "kv_update":
            size = getattr(library, f"{name}_workspace")(ctypes.byref(call))
            room = torch.empty(size, dtype=torch.uint8, device=on.device)
            arguments = (*arguments, *_pointers(on, room))
        error = getattr(library, f"launch_{name}")(ctypes.byref(call), *arguments, stream)
    if error:
        raise RuntimeError(f"dqexport::{name}: error {error} of the CUDA runtime")


def _check_linear(
    depth: int, width: int, codes: Sequence[Tensor], scales: Sequence[Tensor],
    steps: Sequence[Tensor], bias: Tensor | None, weight_bits: int, channel: bool, group: int,
) -> None:  # fmt: skip
    groups = -(-depth // group)
    stored = (depth, width) if weight_bits == 8 else ((depth * width + 1) // 2,)
    for each in codes:
        _expect("codes", each, stored, torch.int8 if weight_bits == 8 else torch.uint8)
    for each in scales:
        _expect("scales", each, (width,) if channel else (groups, width), scales[0].dtype)
    for each in steps:
        _expect("steps", each, (groups, width), torch.int8)
    wanted = len(codes) if channel and weight_bits == 4 else 0
    if not len(codes) == len(scales) in (1, 2) or len(steps) != wanted:
        raise ValueError(f"{len(codes)} codes, {len(scales)} scales and {len(steps)} steps")
    if bias is not None:
        _expect("bias", bias, (width,))


def _expect(
    name: str, tensor: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None
) -> None:
    if tuple(tensor.shape) != tuple(shape) or (dtype is not None and tensor.dtype != dtype):
        found = f"{tensor.dtype} {tuple(tensor.shape)}"
        raise ValueError(f"{name} is {found}, not {dtype or ''} {tuple(shape)}")


def _type(x: Tensor) -> int:
    if x.dtype not in TYPES:
        raise ValueError(f"activations and scales are fp32, fp16 or bf16, not {x.dtype}")
    return TYPES.index(x.dtype)


def _pointers(on: Tensor, *tensors: Tensor | None) -> list[ctypes.c_void_p]:
    """Where tensors begin, which lie on the device of `on`."""
    for tensor in tensors:
        if tensor is not None and not (tensor.device == on.device and tensor.is_contiguous()):
            raise ValueError(f"tensors have to be contiguous, and all on {on.device}")
    return [ctypes.c_void_p(None if t is None else t.data_ptr()) for t in tensors]
