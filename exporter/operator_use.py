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
    2^-16 of a group's largest, 8 is what MatMulNBits does at accuracy level 4; None: standard
    operators.
    """

    float_bits: int | None = 16
    weight_bits: tuple[int, ...] = (4, 8)  # of linears that are ours
    attention: bool = True
    kv_update: bool = False
    cached_attention: bool = False
    plugins: bool = False  # kernels are plugins of TensorRT, which compute in halves too


def operator_use(target: Target, wanted: bool, accuracy_level: int) -> OperatorUse | None:
    """The operators that graphs for a target use; None: none, or none `wanted`."""
    if not target.operators or not wanted:
        return None
    plugins = target.runtime != "onnxruntime"
    by_name = {"linear": (4, 8), "linear-w4": (4,)}
    return OperatorUse(
        float_bits=None if plugins else 8 if accuracy_level == 4 else 16,
        weight_bits=next((by_name[name] for name in target.operators if name in by_name), ()),
        attention="attention" in target.operators,
        kv_update="kv-update" in target.operators,
        cached_attention="cached-attention" in target.operators,
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
    return recipe.kv_bits < 16 or recipe.activation is not None or recipe.attention is not None
