"""The emitted portable graphs, with their weights file, build TensorRT-RTX engines without a GPU.

Nothing runs here: what is held is that the parser takes every operator, the builder finds a kernel
for each with dynamic shapes, and 4-bit weights stay 4 bits wide in the engine.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest

from exporter.build import BuildOptions, build
from exporter.decoding import DecodeOptions
from ort_ops.int4 import dequantize_blocks, pack_int4
from tests.fixtures_lower import golden, lower

pytestmark = pytest.mark.trt

CAPABILITY = "SM86"
CAPACITY = 64  # of a cache: fixed, for TensorRT scatters into nothing else
PROFILE = {"rows": (2, 4, 16), "W": (1, 8, 64)}  # least, best, most
PROFILE |= {"S": (9, 19, 64), "Q": (4, 8, 64)}
GRAPHS = (  # the plainest of both kinds, and those that have every operator
    "full", "full-guided-sample", "cached", "cached-guided-sample",
)  # fmt: skip
DREAM = Path(__file__).parents[1] / "golden" / "dream"  # biases, shared heads, shift, padding
TARGETS = ("cpu", "cuda")  # fp32 and fp16 arithmetic

Bundles = Callable[[Path | None, str], Path]


@pytest.fixture(scope="module")
def trt() -> Any:
    return pytest.importorskip("tensorrt_rtx_bindings", reason="needs the `rtx` extra")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """A w4a16 bundle of a checkpoint for a target, built once."""
    folder = tmp_path_factory.mktemp("bundles")

    def bundle(checkpoint: Path | None, target: str) -> Path:
        out = folder / f"{checkpoint.name if checkpoint else 'reference'}-{target}"
        if not out.exists():
            decode = DecodeOptions(gen_length=8, steps=1, block_length=8)
            options = BuildOptions("w4a16-rtn", decode=decode, gate_prompts=1, gate=False)
            build(checkpoint, target, out, options)
        return out

    return bundle


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("checkpoint", [None, DREAM], ids=["reference", "dream"])
def test_engine_holds_the_packed_weights(
    trt: Any, bundles: Bundles, checkpoint: Path | None, target: str, graph: str
) -> None:
    """The engine stores linears as [N, K]; there, the 4-bit codes lie as packed as in the bundle.

    So a linear takes half a byte a weight and its scales: its values as floats are not there.
    """
    file = bundles(checkpoint, target) / "graphs" / f"{graph}.onnx"
    engine = build_engine(trt, file)
    linears = quantized_linears(file)
    assert linears
    for name, (codes, scales) in linears.items():
        assert pack_int4(codes.T.copy()).tobytes() in engine, name
        floats = dequantize_blocks(codes, scales, len(codes) // len(scales))
        for stored in (floats, floats.astype(np.float16)):
            assert stored.tobytes()[:256] not in engine, name
            assert stored.T.tobytes()[:256] not in engine, name  # .T.tobytes() is column by column


@pytest.mark.parametrize("graph", ["full", "cached"])
def test_block_causal_masks_build(trt: Any, graph: str, tmp_path: Path) -> None:
    lowered = lower(golden("sdar"), "fp16", tmp_path, compute="fp16")
    assert build_engine(trt, lowered.bundle.folder / "graphs" / f"{graph}.onnx")


def build_engine(trt: Any, file: Path) -> bytes:
    """An engine for CAPABILITY. ValueError with what the parser or the builder refused."""
    log = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    file = with_capacity(file)
    if not parser.parse_from_file(str(file)):  # from its file, so that weights.bin is found
        raise ValueError("; ".join(parser.get_error(i).desc() for i in range(parser.num_errors)))
    allow_attention_without_a_kernel(trt, network)
    config = builder.create_builder_config()
    config.add_optimization_profile(make_profile(builder, network, file))
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, CAPABILITY), 0)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ValueError(f"no engine for {file.name}: see stderr")
    return bytes(engine)


def with_capacity(file: Path) -> Path:
    """The graph for caches of CAPACITY positions, beside the weights; itself if it has no cache."""
    model = onnx.load(file, load_external_data=False)
    sizes = [
        size
        for value in (*model.graph.input, *model.graph.output)
        for size in value.type.tensor_type.shape.dim
        if size.dim_param == "C"
    ]
    if not sizes:
        return file
    for size in sizes:
        size.dim_value = CAPACITY
    fixed = file.with_name(f"{file.stem}-{CAPACITY}.onnx")
    onnx.save(model, fixed)
    return fixed


def allow_attention_without_a_kernel(trt: Any, network: Any) -> None:
    """There is no fused attention in fp32; the builder may then compose it of other layers."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer  # the bindings' way to cast
            layer.attention.decomposable = True


def make_profile(builder: Any, network: Any, file: Path) -> Any:
    """PROFILE for every dynamic input, by the names of its axes in the graph."""
    axes = {value.name: value.shape for value in ir.load(file).graph.inputs}
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        name = network.get_input(index).name
        dims = [getattr(dim, "value", dim) for dim in axes[name] or ()]
        if PROFILE.keys() & dims:
            spans = [(dim, dim, dim) if isinstance(dim, int) else PROFILE[str(dim)] for dim in dims]
            profile.set_shape(name, *([span[i] for span in spans] for i in range(3)))
    return profile


def quantized_linears(
    file: Path,
) -> dict[str, tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]]:
    """Codes (K, N) and scales (K / group, N) of the 4-bit linears, by name."""
    tensors = ir.load(file).graph.initializers
    found = {}
    for name, value in tensors.items():
        if value.dtype == ir.DataType.INT4:
            codes, scales = value.const_value, tensors[f"{name}.scale"].const_value
            assert codes is not None
            assert scales is not None
            found[name] = codes.numpy().astype(np.int8), scales.numpy().astype(np.float32)
    return found
