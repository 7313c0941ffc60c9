"""Which parts of a graph run as operators of ours (`ort_ops`), and in which formats."""

from dataclasses import dataclass

from exporter.recipes import Recipe, keeps_codes
from targets import Target


@dataclass(frozen=True)
class OperatorUse:
    """The rule: whatever has a kernel of ours on the target, in a format that it knows.

    On a CPU these are all quantized linears: `tools.bench_linear` is the measurement behind that.
    TensorRT multiplies 8-bit weights and inputs itself, and floats; 4-bit weights and integer
    inputs it does not.

    `float_bits`: of linears whose recipe leaves activations in float; 16 keeps them to within
    2^-16 of a group's largest, on a GPU as they are; 8 is what MatMulNBits does at accuracy level
    4; None: standard operators. On GPUs that is the default: products of floats by 4-bit weights of
    TensorRT and of ONNX Runtime were not measured against ours.
    """

    float_bits: int | None = 16
    weight_bits: tuple[int, ...] = (4, 8)  # of linears that are ours
    attention: bool = True
    kv_update: bool = False
    cached_attention: bool = False
    gpu: bool = False  # kernels are for GPUs, which compute in halves too
    plugins: bool = False  # of TensorRT


def operator_use(target: Target, wanted: bool, accuracy_level: int) -> OperatorUse | None:
    """The operators that graphs for a target use; None: none, or none `wanted`."""
    if not target.operators or not wanted:
        return None
    plugins = target.runtime != "onnxruntime"
    by_name = {"linear": (4, 8), "linear-w4": (4,)}
    kept = 16 if target.sm is None or "linear-w4a16" in target.operators else None
    return OperatorUse(
        float_bits=8 if accuracy_level == 4 else kept,
        weight_bits=next((by_name[name] for name in target.operators if name in by_name), ()),
        attention="attention" in target.operators,
        kv_update="kv-update" in target.operators,
        cached_attention="cached-attention" in target.operators,
        gpu=target.sm is not None,
        plugins=plugins,
    )


def cache_bits(target: Target, use: OperatorUse | None, recipe: Recipe) -> tuple[int, ...]:
    """What graphs of a recipe can keep keys and values in on a target, with the operators `use`.

    TensorRT stores no integers in a cache by itself; of ours, one does that for bytes, and one with
    codes of attention.
    """
    if target.runtime == "onnxruntime":
        return target.cache_bits
    bytes_too = use is not None and use.kv_update
    codes = use is not None and use.cached_attention and keeps_codes(recipe.attention, 4)
    possible = {16, *[8] * bytes_too, *[8, 4] * codes}
    return tuple(bits for bits in target.cache_bits if bits in possible)


def needs_plugins(use: OperatorUse | None, recipe: Recipe) -> bool:
    """Whether graphs of a recipe may have nodes that are plugins of TensorRT."""
    if use is None or not use.plugins:
        return False
    rounded = recipe.activation is not None or recipe.attention is not None
    ours = use.float_bits is not None and recipe.weights is not None
    return recipe.kv_bits < 16 or rounded or ours
