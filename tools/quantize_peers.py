"""Other packages' GPTQ and AWQ as contestants of `tools.bench_quantize`.

It runs in an interpreter that has the package: `python -m tools.quantize_peers PACKAGE`. Each is
asked for what we do: symmetric groups, columns in their order, no clip search, our damping.
"""

import sys
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from tools.quantize_worker import Request, Solve, serve


class Layer(torch.nn.Module):
    """A norm that scales can be folded into, and a linear that reads what it makes.

    What is fed is the input of the linear.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.norm = torch.nn.RMSNorm(weight.shape[1])
        self.linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.linear.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        return y


def gptqmodel() -> Solve:
    """GPTQModel, https://pypi.org/project/gptqmodel/."""
    from gptqmodel.quantization import QuantizeConfig  # type: ignore[import-not-found]
    from gptqmodel.quantization.gptq import GPTQ  # type: ignore[import-not-found]

    def gptq(request: Request, weight: Tensor, x: Tensor) -> tuple[Tensor, float, float]:
        settings = QuantizeConfig(
            bits=request.bits, group_size=request.group, sym=True, desc_act=False,
            act_group_aware=False, damp_percent=request.damping, mse=0.0,
        )  # fmt: skip
        start = perf_counter()
        task = GPTQ(Layer(weight).linear, settings)
        task.quantizer.configure(perchannel=True)
        task.add_batch(x[None], None)
        task.finalize_hessian()
        half = perf_counter()
        found = task.quantize()[0]
        return found, half - start, perf_counter() - half

    return gptq


def llmcompressor() -> Solve:
    """LLM Compressor, https://pypi.org/project/llmcompressor/."""
    from compressed_tensors.quantization import (  # type: ignore[import-not-found]
        QuantizationArgs,
        QuantizationScheme,
        forward_quantize,
    )
    from llmcompressor.core import (  # type: ignore[import-not-found]
        active_session,
        reset_session,
    )
    from llmcompressor.modifiers.gptq import GPTQModifier  # type: ignore[import-not-found]
    from llmcompressor.modifiers.quantization import (  # type: ignore[import-not-found]
        QuantizationModifier,
    )
    from llmcompressor.modifiers.transform.awq import (  # type: ignore[import-not-found]
        AWQMapping,
        AWQModifier,
    )
    from llmcompressor.pipelines.cache import (  # type: ignore[import-not-found]
        IntermediatesCache,
    )

    # It pins memory for a GPU; without one, PyTorch refuses.
    IntermediatesCache.pin_memory = lambda *_: None

    def groups(request: Request) -> dict[str, Any]:
        weights = QuantizationArgs(
            num_bits=request.bits, group_size=request.group, symmetric=True, strategy="group"
        )
        return {"all": QuantizationScheme(targets=["Linear"], weights=weights)}

    def gptq(request: Request, weight: Tensor, x: Tensor) -> tuple[Tensor, float, float]:
        reset_session()
        state, layer = active_session().state, Layer(weight)
        state.model = layer
        modifier = GPTQModifier(
            config_groups=groups(request), actorder=None, dampening_frac=request.damping
        )
        start = perf_counter()
        modifier.on_initialize(state)
        modifier.on_calibration_start(state, None)
        layer(x)
        half = perf_counter()
        modifier.on_sequential_epoch_end(state, None, modules=[layer.linear])
        return layer.linear.weight, half - start, perf_counter() - half

    def awq(request: Request, weight: Tensor, x: Tensor) -> tuple[Tensor, float, float]:
        reset_session()
        state, layer = active_session().state, Layer(weight)
        state.model = layer
        quantizer = QuantizationModifier(config_groups=groups(request))
        mapping = AWQMapping("re:.*norm", ["re:.*linear"])
        modifier = AWQModifier(mappings=[mapping], duo_scaling=False, n_grid=20)
        start = perf_counter()
        modifier.on_initialize(state)
        quantizer.on_initialize(state)
        quantizer.on_calibration_start(state, None)
        modifier.on_calibration_start(state, None)
        layer(x)
        half = perf_counter()
        modifier.on_sequential_epoch_end(state, None)
        quantizer.on_sequential_epoch_end(state, None, modules=[layer.linear])
        done = perf_counter()
        linear, weights = layer.linear, groups(request)["all"].weights
        found = forward_quantize(linear, linear.weight, "weight", weights)
        return found * layer.norm.weight, half - start, done - half

    methods = {"gptq": gptq, "awq": awq}
    return lambda request, weight, x: methods[request.method](request, weight, x)


PEERS = {"gptqmodel": gptqmodel, "llmcompressor": llmcompressor}

if __name__ == "__main__":
    serve(PEERS[sys.argv[1]])
