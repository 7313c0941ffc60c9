"""Floors of attention on GPUs, by hand."""

import pytest

from tools.attention_forms import BASE, NAMED, SHAPES, Shape, floor
from tools.gpu_machine import Machine

MACHINE = Machine("made up", bandwidth=1e9, int8=2e12, halves=1e12)
SHAPE = Shape(batch=2, queries=32, keys=1024, heads=28, kv_heads=4)


def test_floors_by_hand() -> None:
    outside = 2 * 2 * 2 * 32 * 28 * 128  # q and y in two bytes
    kept = 2 * 4 * 1024  # vectors of keys, and as many of values
    seen = 2 * 32 * 1024
    fed = 2 * 4 * 32  # of them, read as floats and written as they are kept
    each = 2 * 28 * 32 * 1024 * 128  # multiply-adds of one product
    wanted = {
        BASE: (outside + kept * 512, each / 1e12 + each / 1e12),
        "8 bits": (outside + kept * 512 + seen, each / 2e12 + each / 2e12),
        "8 bits, P·V in fp16": (outside + kept * 512 + seen, each / 2e12 + each / 1e12),
        "cache of 8 bits": (outside + kept * 258 + fed * (512 + 258), each / 2e12 + each / 2e12),
        "cache of 4 bits": (outside + kept * 130 + fed * (512 + 130), each / 2e12 + each / 2e12),
        "cache of 8 bits, P·V in fp16": (
            outside + kept * 386 + fed * (512 + 386),
            each / 2e12 + each / 1e12,
        ),
    }
    for name, (moved, multiplied) in wanted.items():
        assert floor(MACHINE, NAMED[name], SHAPE) == pytest.approx((moved / 1e9, multiplied))


def test_shapes_are_all_and_each_once() -> None:
    assert len(set(SHAPES)) == len({shape.title for shape in SHAPES}) == 5 * 2 * 2 * 2
    assert {shape.keys for shape in SHAPES} == {256, 512, 1024, 2048, 4096}
    assert all(shape.queries in (32, shape.keys) for shape in SHAPES)
