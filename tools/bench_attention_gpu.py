"""Our attention on GPUs against that of PyTorch and others: time, floors, error, memory.

Run by `tools.bench_kernels`. The floor of attention is the larger of its bytes at the bandwidth and
of its multiply-adds at the rates of the types that both products are made of.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

from ort_ops.attention.op import AttentionTops
from tools.attention_data import KINDS, errors, exact, operands
from tools.gpu_launchers import (
    AttentionCall,
    CachedCall,
    CachedOperands,
    CachedResults,
    checked,
    stream,
)
from tools.gpu_machine import Machine
from tools.gpu_timing import Run, contestant, copies, take_turns

if TYPE_CHECKING:
    import torch

WIDTH = 128  # channels of a head
SETS = 20  # of operands, at most: those of short canvases stay in a cache, as after a linear
BASE = "SDPA flash, bf16"
Output = Callable[[], "torch.Tensor"]  # y (B, H, Q, K) of the last call


@dataclass(frozen=True)
class Shape:
    """Of one call."""

    batch: int
    queries: int
    keys: int
    heads: int
    kv_heads: int

    @property
    def title(self) -> str:
        return (
            f"B {self.batch}, Q {self.queries}, S {self.keys}, {self.heads}/{self.kv_heads} heads"
        )


# whole canvases and blocks of 32, LLaDA's heads and Dream's: the middle ones first
SHAPES = tuple(
    Shape(batch, keys if whole else 32, keys, heads, kv_heads)
    for keys in (1024, 4096, 256, 2048, 512)
    for batch in (1, 4)
    for whole in (True, False)
    for heads, kv_heads in ((32, 32), (28, 4))
)


@dataclass(frozen=True)
class Form:
    """What a contestant keeps of a key and its value, and what it multiplies."""

    name: str
    k_bits: int = 16
    v_bits: int = 16
    integer_scores: bool = False
    integer_values: bool = False
    cached: bool = False  # reads codes from a cache; others round keys and values in the call
    ours: bool = False

    def kept(self) -> float:
        """Bytes a token and key head, scales of keys included."""
        return WIDTH * (self.k_bits + self.v_bits) / 8 + (2 if self.k_bits < 16 else 0)

    def bytes_moved(self, shape: Shape) -> float:
        """q, y, keys and values once, two bytes a number, or what a cache keeps of them; of a
        cache also what is fed and written; who sees whom.
        """
        outside = 4 * shape.batch * shape.queries * shape.heads * WIDTH
        vectors = shape.batch * shape.kv_heads
        if self.cached:
            fed = shape.queries * (4 * WIDTH + self.kept())
            return outside + vectors * (shape.keys * self.kept() + fed)
        seen = shape.batch * shape.queries * shape.keys if self.ours else 0
        return outside + vectors * shape.keys * 4 * WIDTH + seen


FORMS = (
    Form(BASE),
    Form("SDPA cuDNN, bf16"),
    Form("SageAttention", integer_scores=True),
    Form("Triton, 8 bits", integer_scores=True, integer_values=True),
    Form("8 bits", integer_scores=True, integer_values=True, ours=True),
    Form("8 bits, P·V in fp16", integer_scores=True, ours=True),
    Form("cache of 8 bits", 8, 8, True, True, True, ours=True),
    Form("cache of 4 bits", 4, 4, True, True, True, ours=True),
    Form("cache of 8 bits, P·V in fp16", 8, 16, True, False, True, ours=True),
)
NAMED = {form.name: form for form in FORMS}


def floor(machine: Machine, form: Form, shape: Shape) -> tuple[float, float]:
    """Seconds that the bytes take at least, and both products."""
    each = shape.batch * shape.heads * shape.queries * shape.keys * WIDTH
    rates = (machine.int8 if integers else machine.halves
             for integers in (form.integer_scores, form.integer_values))  # fmt: skip
    return form.bytes_moved(shape) / machine.bandwidth, sum(each / rate for rate in rates)


def row_of(
    machine: Machine, shape: Shape, form: Form, seconds: dict[str, list[float]],
    off: dict[str, tuple[float, float]],
) -> dict[str, Any]:  # fmt: skip
    """A row of the table; `off`: relative error and 1 - cosine a kind of data."""
    took = median(seconds[form.name])
    ratios = (
        [a / b for a, b in zip(seconds[BASE], seconds[form.name], strict=True)]
        if BASE in seconds
        else []
    )
    moved, multiplied = floor(machine, form, shape)
    least = max(moved, multiplied)
    found: dict[str, Any] = {
        "shape": shape.title, "kernel": form.name, "µs": 1e6 * took,
        "times flash bf16": median(ratios) if ratios else None,
        "least … most": (min(ratios), max(ratios)) if ratios else None,
        "floor µs": 1e6 * least, "% of floor": 100 * least / took,
    }  # fmt: skip
    for kind in KINDS:
        error, angle = off.get(kind, (None, None))
        found |= {f"error, {kind}": error, f"1 - cosine, {kind}": angle}
    return found


def memory(kv_heads: int = 32, layers: int = 32) -> list[dict[str, object]]:
    """What caches take a token, in a model of LLaDA-8B's size."""
    base = NAMED[BASE].kept()
    return [
        {
            "kept": form.name if form.cached else "fp16",
            "bytes a token and key head": form.kept(),
            "KiB a token": form.kept() * kv_heads * layers / 1024,
            "of fp16": form.kept() / base,
        }
        for form in FORMS
        if form.cached or form.name == BASE
    ]


def plan(machine: Machine, shapes: Sequence[Shape]) -> list[dict[str, object]]:
    """Floors of our kernels and of bf16."""
    found: list[dict[str, object]] = []
    for shape in shapes:
        base = max(floor(machine, NAMED[BASE], shape))
        for form in FORMS:
            if form.ours:
                moved, multiplied = floor(machine, form, shape)
                least = max(moved, multiplied)
                found.append({
                    "shape": shape.title, "kernel": form.name,
                    "bound by": "bytes" if moved > multiplied else "products",
                    "floor µs": 1e6 * least, "bf16 floor µs": 1e6 * base,
                    "times bf16 at both floors": base / least,
                })  # fmt: skip
    return found


def predictions(
    table: Sequence[dict[str, Any]], machines: Sequence[Machine]
) -> list[dict[str, object]]:
    """What boards would take at the same share of their own floors, for B 1."""
    shapes = {shape.title: shape for shape in SHAPES}
    found: list[dict[str, object]] = []
    for machine in machines:
        for row in table:
            form, shape = NAMED[row["kernel"]], shapes[row["shape"]]
            if form.ours and shape.batch == 1:
                least = max(floor(machine, form, shape))
                found.append({
                    "board": machine.name, "shape": shape.title, "kernel": form.name,
                    "floor µs": 1e6 * least, "predicted µs": 1e8 * least / row["% of floor"],
                })  # fmt: skip
    return found


def compare(
    library: ctypes.CDLL, machine: Machine, shape: Shape, rounds: int, calls: int
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """One shape: a row a contestant, and who is absent and why."""
    import torch

    with torch.device("cuda"):
        field = [contestant(form.name, partial(_timed, library, form, shape)) for form in FORMS]
        present = {each.name: each.run for each in field if each.run is not None}
        seconds, plain = take_turns(present, rounds, calls)
        off = {name: errors_of(library, NAMED[name], replace(shape, batch=1)) for name in present}
    table = [row_of(machine, shape, NAMED[name], seconds, off[name]) for name in present]
    return table, {each.name: each.absent for each in field if each.run is None} | plain


def errors_of(library: ctypes.CDLL, form: Form, shape: Shape) -> dict[str, tuple[float, float]]:
    """Relative error and 1 - cosine a kind of data."""
    found = {}
    for kind in KINDS:
        q, k, v = operands(kind, 1, shape.queries, shape.keys, shape.heads, shape.kv_heads, WIDTH)
        found[kind] = errors(judged(library, form, shape, q, k, v), exact(q, k, v))
    return found


def _timed(library: ctypes.CDLL, form: Form, shape: Shape) -> Run:
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
