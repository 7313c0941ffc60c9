"""The kernels as operators of PyTorch, on the host and on GPUs."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ort_ops import torch_binding
from ort_ops.attention.op import AttentionTops
from ort_ops.build_cuda import CudaBuildError
from ort_ops.cached_attention.op import INPUTS, TURNS, CachedForm
from ort_ops.int4 import pack_int4
from ort_ops.kv_update.op import reference
from ort_ops.linear_w4a8.op import OPS, LinearOp
from tests import attention_case, cached_attention_case, linear_case
from tests.attention_case import AttentionShape
from tests.cached_attention_case import CachedShape
from tests.launched import host_compiler
from tests.launched_linear import Kind, assert_right, in_kind
from tests.linear_case import Float32, LinearCase, random_rows

TYPES: dict[Kind, torch.dtype] = {
    "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16,
}  # fmt: skip
HALVES = pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cpu" and host_compiler() is None:
        pytest.skip("no g++")
    return torch.device(request.param)


def on(device: torch.device, array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).to(device)


def some_case(op: LinearOp) -> LinearCase:
    """x of 16 bits is not rounded on GPUs."""
    case = linear_case.random_case(np.random.default_rng(0), op, (64, 32), 32, 64, exact=False)
    return replace(case, kept=op.activation_bits == 16)


def linear(case: LinearCase, x: Float32, kind: Kind, device: torch.device) -> torch.Tensor:
    op, stored = case.op, torch.float16 if case.half else torch.float32
    packed = [w.codes if op.weight_bits == 8 else pack_int4(w.codes) for w in case.weights]
    bias = None if op.gated else on(device, case.bias).to(TYPES[kind])
    y: torch.Tensor = torch.ops.dqexport.linear(
        on(device, x).to(TYPES[kind]),
        [on(device, codes) for codes in packed],
        [on(device, w.scales).to(stored) for w in case.weights],
        [on(device, w.steps) for w in case.weights if w.steps is not None],
        bias, op.weight_bits, op.activation_bits, op.channel, case.group, case.activation_group,
        case.step,
    )  # fmt: skip
    return y


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
@pytest.mark.parametrize("kind", TYPES)
def test_a_linear_is_the_reference(device: torch.device, op: LinearOp, kind: Kind) -> None:
    given = some_case(op)
    case, x = in_kind(given, random_rows(np.random.default_rng(1), given, (2, 5)), kind)
    y = linear(case, x, kind, device)
    assert y.dtype == TYPES[kind] and y.device.type == device.type
    assert_right(case, x, y.float().cpu().numpy(), kind)


def test_shapes_are_known_without_computing() -> None:
    """As torch.compile asks for them."""
    case, x = some_case(LinearOp(4, 8)), np.zeros((2, 3, 64), np.float32)
    with FakeTensorMode(allow_non_fake_inputs=True):
        y = linear(case, x, "fp16", torch.device("cpu"))
    assert y.shape == (2, 3, 32) and y.dtype == torch.float16


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    case = some_case(LinearOp(4, 8))
    with pytest.raises(ValueError, match="codes is"):
        linear(case, np.zeros((1, 66), np.float32), "fp32", device)
    cache = torch.zeros(1, 4, 1, 8, dtype=torch.int8, device=device).transpose(1, 2)
    start = torch.zeros(1, dtype=torch.int64, device=device)
    with pytest.raises(ValueError, match="contiguous"):
        torch.ops.dqexport.kv_update(cache[..., ::2], cache[..., :1, :4], start)


@HALVES
def test_attention_is_right(device: torch.device, half: bool) -> None:
    shape = AttentionShape(rows=2, queries=9, keys=21, heads=4, kv_heads=2, width=64)
    rng = np.random.default_rng(0)
    case = attention_case.random_case(rng, shape, AttentionTops(), half)
    tops = (case.tops.q, case.tops.k, case.tops.v, case.tops.p)
    inputs = [on(device, x) for x in case.inputs]
    y = torch.ops.dqexport.attention(*inputs, case.heads, *tops)
    least, most, _ = case.bounds()
    found = y.cpu().numpy()
    assert ((least <= found) & (found <= most)).all()


@HALVES
@pytest.mark.parametrize("turned", [0, 16])
def test_cached_attention_is_right(device: torch.device, half: bool, turned: int) -> None:
    form = CachedForm(4, 2, k_bits=8, v_bits=4)
    shape = CachedShape(rows=2, queries=5, capacity=20, width=32, turned=turned)
    rng = np.random.default_rng(0)
    case = cached_attention_case.random_case(rng, shape, form, half)
    x = {name: on(device, array.copy()) for name, array in case.x.items()}
    attributes = asdict(form)
    del attributes["kv_heads"]  # said by shapes
    tensors = [x.get(name) for name in (*INPUTS, *TURNS)]
    y = torch.ops.dqexport.cached_attention(*tensors, **attributes)
    least, most, _ = case.bounds()
    found = y.cpu().numpy()
    assert ((least <= found) & (found <= most)).all()
    caches = case.caches()
    for name, wanted in (
        ("k_cache", caches.k),
        ("k_scales", caches.k_scales),
        ("v_cache", caches.v),
    ):
        np.testing.assert_array_equal(x[name].cpu().numpy(), wanted)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
def test_a_cache_is_written(device: torch.device, dtype: type[np.generic]) -> None:
    rng = np.random.default_rng(0)
    cache, fresh = (rng.integers(-99, 99, (2, 3, many, 20)).astype(dtype) for many in (7, 3))
    start = np.array([0, 4])
    kept = on(device, cache.copy())
    torch.ops.dqexport.kv_update(kept, on(device, fresh), on(device, start))
    np.testing.assert_array_equal(kept.cpu().numpy(), reference(cache, fresh, start))


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    torch_binding._library.cache_clear()
    monkeypatch.setattr(torch_binding, "prebuild", _no_compiler)
    assert torch_binding.missing(torch.device("cpu")) == "no C++ compiler"
    torch_binding._library.cache_clear()


def _no_compiler(sm: int | None) -> None:
    raise CudaBuildError("no C++ compiler")
