"""Contestants of the GPU benchmarks, on the host build of our launchers: operands are in place."""

import ctypes

import pytest
import torch

from ort_ops.build_cuda import prebuild
from tests.launched import host_compiler
from tools import bench_linears_gpu as linears
from tools.attention_contestants import errors_of
from tools.attention_data import KINDS, errors, exact, operands
from tools.attention_forms import BASE, FORMS, NAMED, Form, Shape
from tools.gpu_launchers import loaded
from tools.gpu_timing import Run, contestant

pytestmark = [
    pytest.mark.skipif(host_compiler() is None, reason="no g++"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="they work on the GPU that is there"),
]
SHAPE = Shape(batch=1, queries=8, keys=80, heads=4, kv_heads=2)


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return loaded(prebuild(None))


@pytest.mark.parametrize("form", [f for f in FORMS if f.ours], ids=lambda f: f.name)
def test_attention_is_nearly_exact(library: ctypes.CDLL, form: Form) -> None:
    """Operands that were mixed up would give a y that has nothing to do with the right one, and
    an error of about 1.4; four bits of keys and values cost some tenths at most."""
    off = errors_of(library, form, SHAPE)
    assert set(off) == set(KINDS)
    most = 0.3 if form.k_bits == 4 else 0.1
    assert all(error < most for error, _ in off.values()), off


def test_pytorch_is_nearly_exact(library: ctypes.CDLL) -> None:
    """The base of all ratios, in bf16: 2^-8 a number; keys of 20 take it to some percent."""
    off = errors_of(library, NAMED[BASE], SHAPE)
    assert off["normal"][0] < 0.02 and off["diffuse rows"][0] < 0.02


def test_errors_of_what_is_right_and_wrong() -> None:
    q, k, v = operands("normal", 1, 8, 80, 4, 2, 128)
    right = exact(q, k, v)
    assert errors(right, right)[0] == 0
    for factor, error, angle in ((-1, 2, 2), (1.1, 0.1, 0)):
        found = errors(factor * right, right)
        assert found[0] == pytest.approx(error)
        assert found[1] == pytest.approx(angle, abs=1e-12)


def test_diffuse_rows_are_diffuse() -> None:
    q, k, _ = operands("diffuse rows", 1, 8, 1024, 4, 2, 128)
    scores = q[:, 0].float() @ k[:, 0].float().mT / 128**0.5
    assert scores.softmax(-1).max() < 2 / 1024


@pytest.mark.parametrize("name", ["W4A8", "W4A8, gated pair", "W8A8", "W4A4", "W4A16"])
def test_linears_take_the_next_weights(
    library: ctypes.CDLL, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """y of some turns: all numbers, and of different weights."""
    monkeypatch.setattr(linears, "copies", lambda size: 2)
    torch.manual_seed(0)
    run = linears.make(library, linears.NAMED[name], 4, 256, 128)
    found = [torch.as_tensor(run(turn)).clone() for turn in (0, 1, 2)]
    assert all(y.isfinite().all() and y.abs().max() > 0.01 for y in found)
    assert torch.equal(found[0], found[2]) and not torch.equal(found[0], found[1])


def test_who_fails_stays_out_and_says_why() -> None:
    def broken() -> Run:
        raise ModuleNotFoundError("No module named 'torchao'")

    found = contestant("torchao int4", broken)
    assert found.run is None and found.absent == "ModuleNotFoundError: No module named 'torchao'"
