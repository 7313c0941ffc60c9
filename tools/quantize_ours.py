"""Our GPTQ and AWQ as a contestant of `tools.bench_quantize`.

The steps of the passes `Gptq` and `Awq` (without its clip search) on one linear, less the errors
that passes report.
"""

from time import perf_counter

import torch
from torch import Tensor

from passes.base import Alone
from passes.numerics import WeightGrid
from passes.transforms.awq import awq_scale, weight_errors
from passes.weights.gptq import Gptq
from passes.weights.hessian import accumulate_hessian
from passes.weights.rtn import round_to_nearest
from tools.quantize_worker import Request, Solve, serve

RATIOS = 20  # of the AWQ search, as others have it


def run_gptq(request: Request, weight: Tensor, x: Tensor) -> tuple[Tensor, float, float]:
    start = perf_counter()
    hessian = hessian_of(x)
    half = perf_counter()
    solver = Gptq(damping=request.damping).prepare(hessian)
    quantized = solver.solve(weight, WeightGrid(request.bits, request.group))
    return quantized.dequantize(), half - start, perf_counter() - half


def run_awq(request: Request, weight: Tensor, x: Tensor) -> tuple[Tensor, float, float]:
    start, grid = perf_counter(), WeightGrid(request.bits, request.group)
    hessian, mean = hessian_of(x), x.abs().mean(0)
    half = perf_counter()
    scales = [awq_scale(mean, step / RATIOS) for step in range(RATIOS)]
    best = scales[int(weight_errors(weight, hessian, grid, scales, Alone()).argmin())]
    quantized = round_to_nearest(weight * best, grid)
    return quantized.dequantize() / best, half - start, perf_counter() - half


def hessian_of(x: Tensor) -> Tensor:
    hessian = torch.zeros(x.shape[1], x.shape[1])
    accumulate_hessian(hessian, x, torch.ones(len(x)))
    return hessian


def prepare() -> Solve:
    methods = {"gptq": run_gptq, "awq": run_awq}
    return lambda request, weight, x: methods[request.method](request, weight, x)


if __name__ == "__main__":
    serve(prepare)
