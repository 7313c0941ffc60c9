"""Writing new keys or values into a cache: contract, numpy reference, and ONNX function body.

`DqxKvUpdate(cache, fresh, start) -> y`, domain `dqexport`, version 1:

* cache (B, H, C, K) and fresh (B, H, Q, K) of one type: fp16, fp32 or int8;
* start int64 (B,): where the first of `fresh` belongs, 0 ≤ start ≤ C − Q;
* y: the cache with `fresh` at the positions start … start + Q − 1. Where a runtime lets it, y is
  the cache's own memory, and nothing but `fresh` is written.

It is TensorScatter for runtimes that do not have it, or not for integers.
"""

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ort_ops.function_body import Body

NAME = "DqxKvUpdate"
TENSOR_SCATTER = 24  # opset that brought it

Values = npt.NDArray[np.generic]


def reference(cache: Values, fresh: Values, start: npt.NDArray[np.int64]) -> Values:
    """y (B, H, C, K)."""
    y = cache.copy()
    for row, first in enumerate(start):
        y[row, :, first : first + fresh.shape[2]] = fresh[row]
    return y


def function_body(body: Body | None = None) -> ir.Function:
    """The operator in standard operators of the body's opset."""
    body = body or Body()
    cache, fresh, start = body.input("cache"), body.input("fresh"), body.input("start")
    return body.function(NAME, written(body, cache, fresh, start), {}, activations=False)


def written(body: Body, cache: ir.Value, fresh: ir.Value, start: ir.Value) -> ir.Value:
    """y in nodes of `body`."""
    if body.opset >= TENSOR_SCATTER:
        return body.op("TensorScatter", cache, fresh, start, axis=-2)
    return body.op("ScatterND", cache, _places(body, fresh, start), fresh)


def _places(body: Body, fresh: ir.Value, start: ir.Value) -> ir.Value:
    """(row, head, position) of every vector of `fresh`, (B, H, Q, 3)."""
    zero, one = (body.constant(np.array(number, np.int64)) for number in (0, 1))
    shape = body.op("Concat", body.op("Shape", fresh, end=3), body.ints(1), axis=0)
    places = []
    for axis, others in enumerate([(1, 2, 3), (0, 2, 3), (0, 1, 3)]):
        count = body.op("Squeeze", body.op("Shape", fresh, start=axis, end=axis + 1))
        steps = body.op("Unsqueeze", body.op("Range", zero, count, one), body.ints(*others))
        if axis == 2:
            steps = body.op("Add", steps, body.op("Unsqueeze", start, body.ints(1, 2, 3)))
        places.append(body.op("Expand", steps, shape))
    return body.op("Concat", *places, axis=-1)
