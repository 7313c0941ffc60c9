"""Shapes of a profile."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.device.build_error import EngineError
from exporter.device.shape_ranges import shape_ranges

SPANS = {"rows": (1, 2, 4), "Q": (5, 6, 7)}
AXES = st.lists(st.integers(1, 64) | st.sampled_from(sorted(SPANS)), max_size=4)


@given(st.dictionaries(st.text(max_size=3), AXES))
def test_named_axes_take_their_spans_and_others_stay(inputs: dict[str, list[int | str]]) -> None:
    ranges = shape_ranges(inputs, SPANS)
    assert set(ranges) == {name for name, axes in inputs.items() if {*axes} & {*SPANS}}
    for name, shapes in ranges.items():
        for which, shape in enumerate(shapes):
            for axis, size in zip(inputs[name], shape, strict=True):
                assert size == (axis if isinstance(axis, int) else SPANS[axis][which])


def test_an_axis_without_a_span_is_named() -> None:
    with pytest.raises(EngineError, match="'S' of ids"):
        shape_ranges({"ids": ["rows", "S"]}, SPANS)
