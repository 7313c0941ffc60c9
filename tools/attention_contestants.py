"""Contestants in attention on GPUs: our launchers, PyTorch, SageAttention, our kernel in Triton."""

import ctypes
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ort_ops.attention.op import AttentionTops
from tools.attention_data import KINDS, errors, exact, operands
from tools.attention_forms import BASE, WIDTH, Form, Shape
from tools.gpu_launchers import (
    AttentionCall,
    CachedCall,
    CachedOperands,
    CachedResults,
    checked,
    stream,
)
from tools.gpu_timing import Run, copies

if TYPE_CHECKING:
    import torch

SETS = 20  # of operands, at most: those of short canvases stay in a cache, as after a linear
Output = Callable[[], "torch.Tensor"]  # y (B, H, Q, K) of the last call


def errors_of(library: ctypes.CDLL, form: Form, shape: Shape) -> dict[str, tuple[float, float]]:
    """Relative error and 1 - cosine a kind of data."""
    found = {}
    for kind in KINDS:
        q, k, v = operands(kind, 1, shape.queries, shape.keys, shape.heads, shape.kv_heads, WIDTH)
        found[kind] = errors(judged(library, form, shape, q, k, v), exact(q, k, v))
    return found


def timed(library: ctypes.CDLL, form: Form, shape: Shape) -> Run:
    """A contestant that takes turns with several sets of operands."""
    size = 4 * shape.batch * shape.kv_heads * shape.keys * WIDTH
    given = [
        operands("normal", shape.batch, shape.queries, shape.keys, shape.heads, shape.kv_heads,
                 WIDTH)
        for _ in range(min(SETS, copies(size)))
    ]  # fmt: skip
    runs = [_make(library, form, shape, *each)[0] for each in given]
    return lambda turn: runs[turn % len(runs)]()


def judged(
    library: ctypes.CDLL, form: Form, shape: Shape, q: "torch.Tensor", k: "torch.Tensor",
    v: "torch.Tensor",
) -> "torch.Tensor":  # fmt: skip
    """y (B, H, Q, K) of a contestant, in memory that was no number before."""
    run, output = _make(library, form, shape, q, k, v)
    run()
    return output()


def _make(
    library: ctypes.CDLL, form: Form, shape: Shape, q: "torch.Tensor", k: "torch.Tensor",
    v: "torch.Tensor",
) -> tuple[Callable[[], object], Output]:  # fmt: skip
    """A call on these operands (B, heads, positions, K), and what it gave."""
    if form.cached:
        return _cached(library, form, shape, q, k, v)
    if form.ours:
        return _ours(library, form, shape, q, k, v)
    if form.name.startswith("Triton"):
        return _triton(q, k, v)
    return _of_others(form.name, q, k, v)


def _of_others(
    name: str, q: "torch.Tensor", k: "torch.Tensor", v: "torch.Tensor"
) -> tuple[Callable[[], object], Output]:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kept: list[torch.Tensor] = []
    if name == "SageAttention":
        from sageattention import sageattn

        def run() -> None:
            kept[:] = [sageattn(q, k, v, tensor_layout="HND", is_causal=False)]
    else:
        q, k, v = (x.bfloat16() for x in (q, k, v))
        kind = SDPBackend.FLASH_ATTENTION if name == BASE else SDPBackend.CUDNN_ATTENTION
        attend = torch.nn.functional.scaled_dot_product_attention

        def run() -> None:
            with sdpa_kernel(kind):
                kept[:] = [attend(q, k, v, enable_gqa=q.shape[1] != k.shape[1])]

    return run, lambda: kept[0]


def _value_grid(v: "torch.Tensor", top: int) -> "tuple[torch.Tensor, torch.Tensor]":
    """Scales and zeros (G, K) that cover all values, as a calibration would find them."""
    if top == 0:
        return v.new_ones(v.shape[1], v.shape[3]), v.new_zeros(v.shape[1], v.shape[3])
    low, high = v.amin((0, 2)).clamp(max=0), v.amax((0, 2)).clamp(min=0)
    scale = ((high - low) / top).clamp(min=2.0**-14)
    return scale.contiguous(), (-low / scale).round().clamp(0, top).contiguous()


def _by_position(x: "torch.Tensor") -> "torch.Tensor":
    """(B, heads, positions, K) as (B, positions, heads · K)."""
    return x.transpose(1, 2).flatten(2).contiguous()


def _apart(y: "torch.Tensor", heads: int) -> "torch.Tensor":
    apart: torch.Tensor = y.unflatten(2, (heads, -1))
    return apart.transpose(1, 2)


def _seen(shape: Shape, q: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
    import torch

    size = (shape.batch, 1, shape.queries, shape.keys)
    visible = torch.ones(size, dtype=torch.bool, device=q.device)
    return visible, torch.ones(shape.batch, shape.keys, dtype=torch.bool, device=q.device)


def _triton(
    q: "torch.Tensor", k: "torch.Tensor", v: "torch.Tensor"
) -> tuple[Callable[[], object], Output]:
    import torch

    from tools.triton_twins.attention import AttentionTwin

    shape = Shape(q.shape[0], q.shape[2], k.shape[2], q.shape[1], k.shape[1])
    given = (_by_position(q), k, v, *_seen(shape, q), *_value_grid(v, 255))
    twin, kept = AttentionTwin(shape.heads, AttentionTops()), list[torch.Tensor]()

    def run() -> None:
        kept[:] = [twin(*given)]

    return run, lambda: _apart(kept[0], shape.heads)


def _pointers(tensors: "Sequence[torch.Tensor]") -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]


def _bytes(count: int, like: "torch.Tensor") -> "torch.Tensor":
    import torch

    return torch.empty(count + 16, dtype=torch.uint8, device=like.device)


def _ours(
    library: ctypes.CDLL, form: Form, shape: Shape, q: "torch.Tensor", k: "torch.Tensor",
    v: "torch.Tensor",
) -> tuple[Callable[[], object], Output]:  # fmt: skip
    """`DqxAttention` by its launcher, rounding included."""
    top = 255 if form.integer_values else 0
    call = AttentionCall(
        shape.batch, shape.heads, shape.kv_heads, shape.queries, shape.keys, WIDTH, 127, 127, top,
        top, 1,
    )  # fmt: skip
    fed = _by_position(q)
    y = fed.new_full(fed.shape, float("nan"))
    room = _bytes(library.attention_workspace(ctypes.byref(call)), q)
    given = (fed, k, v, *_seen(shape, q), *_value_grid(v, top), y, room)

    def run() -> None:
        checked(library.launch_attention(ctypes.byref(call), *_pointers(given), stream()))

    return run, lambda: _apart(y, shape.heads)


def _cached(
    library: ctypes.CDLL, form: Form, shape: Shape, q: "torch.Tensor", k: "torch.Tensor",
    v: "torch.Tensor",
) -> tuple[Callable[[], object], Output]:  # fmt: skip
    """`DqxCachedAttention`: one call feeds all keys, the calls that are timed the last ones."""
    import torch

    rows, kv_heads, keys, heads = shape.batch, shape.kv_heads, shape.keys, shape.heads
    top, device = 0 if form.v_bits == 16 else 2**form.v_bits - 1, q.device
    whole = (rows, kv_heads, keys)
    caches = (
        torch.zeros(*whole, WIDTH * form.k_bits // 8, dtype=torch.int8, device=device),
        torch.zeros(*whole, 1, dtype=torch.float16, device=device),
        torch.zeros_like(v) if form.v_bits == 16
        else torch.zeros(*whole, WIDTH * form.v_bits // 8, dtype=torch.int8, device=device),
    )  # fmt: skip
    mean = k.float().mean((0, 2)).half().contiguous()
    block = torch.zeros(rows, keys, dtype=torch.int32, device=device)
    grid = _value_grid(v, top)

    def fed_by(queries: "torch.Tensor", first: int) -> tuple[Callable[[], object], "torch.Tensor"]:
        count = queries.shape[2]
        call = CachedCall(
            rows, heads, kv_heads, count, keys, WIDTH, 127, top, form.k_bits, form.v_bits, 0, 1
        )
        now = slice(first, first + count)
        start = torch.full((rows,), first, dtype=torch.int64, device=device)
        reach = torch.zeros(rows, count, dtype=torch.int32, device=device)
        x = [_by_position(each) for each in (queries, k[:, :, now], v[:, :, now])]
        tensors = (*x, *caches, start, block, reach, mean, *grid)
        y = x[0].new_full(x[0].shape, float("nan"))
        given = CachedOperands(*(tensor.data_ptr() for tensor in tensors), None, None)
        results = CachedResults(*(tensor.data_ptr() for tensor in (y, *caches)))
        room = _bytes(library.cached_attention_workspace(ctypes.byref(call)), q)
        kept = (tensors, y, room)

        def run() -> None:
            at = ctypes.c_void_p(kept[2].data_ptr())
            checked(
                library.launch_cached_attention(
                    ctypes.byref(call), ctypes.byref(given), ctypes.byref(results), at, stream()
                )
            )

        return run, y

    fill, _ = fed_by(q.new_zeros(rows, heads, keys, WIDTH), 0)
    fill()
    run, y = fed_by(q, keys - shape.queries)
    return run, lambda: _apart(y, heads)
