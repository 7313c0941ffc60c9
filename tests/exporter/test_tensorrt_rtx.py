"""Bundles for RTX cards: their graphs become engines of TensorRT for RTX, without a GPU.

Nothing runs here: what is held is that the parser takes every operator, the builder finds a kernel
for each with variable shapes, and 4-bit weights stay 4 bits wide in the engine.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from exporter import engines
from exporter.build import BuildOptions, build
from exporter.decoding import DecodeOptions
from exporter.device.build_error import EngineError
from exporter.device.build_network import serialized
from exporter.device.bundle_files import digest
from exporter.engine_plans import plan_engines
from exporter.errors import UserError
from exporter.graph_kind import GraphKind, graph_kinds
from exporter.graph_rules import GraphRules
from exporter.inspect import describe
from exporter.manifest import Manifest
from exporter.progress import Progress
from exporter.quant_options import QuantOptions
from exporter.runtime.built_engines import Here, read_engines, why_refused
from exporter.runtime.settings import Settings
from exporter.verify import read_manifest, verify
from ort_ops.int4 import dequantize_blocks, pack_int4
from tests.commands import assert_refused, content, dqexport
from tests.fixtures_lower import CANVAS, golden, lower

pytestmark = pytest.mark.trt

SM = (89,)
GOLDEN = Path(__file__).parents[1] / "golden"
DREAM = GOLDEN / "dream"  # biases, shared heads, shift, padding
GRAPHS = (  # the plainest of both kinds, and those that have every operator
    "full", "full-guided-sample", "cached", "cached-guided-sample",
)  # fmt: skip
DECODE = DecodeOptions(gen_length=16, steps=2, block_length=8)

Bundles = Callable[[Path | None], Path]


@pytest.fixture(scope="module")
def trt() -> Any:
    return pytest.importorskip("tensorrt_rtx_bindings", reason="needs the `rtx` extra")


@pytest.fixture(scope="module")
def bundles(trt: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """A w4a16 bundle of a checkpoint with the engines of GRAPHS, built once."""
    folder = tmp_path_factory.mktemp("bundles")

    def bundle(checkpoint: Path | None) -> Path:
        out = folder / (checkpoint.name if checkpoint else "reference")
        if not out.exists():
            options = BuildOptions(
                "w4a16-rtn", decode=DECODE, gate_prompts=1, gate=False, engines=GRAPHS
            )
            build(checkpoint, "rtx-40", out, options)
        return out

    return bundle


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("checkpoint", [None, DREAM], ids=["reference", "dream"])
def test_engine_holds_the_packed_weights_once(
    bundles: Bundles, checkpoint: Path | None, graph: str
) -> None:
    """The engine stores linears as [N, K]; there, the 4-bit codes lie as packed as in the bundle.

    So a linear takes half a byte a weight and its scales, whatever the number of profiles; its
    values as floats are not there.
    """
    folder = bundles(checkpoint)
    engine = (folder / "engines" / f"{graph}.plan").read_bytes()
    linears = quantized_linears(folder / "graphs" / f"{graph}.onnx")
    assert linears
    for name, (codes, scales) in linears.items():
        assert engine.count(pack_int4(codes.T.copy()).tobytes()) == 1, name
        floats = dequantize_blocks(codes, scales, len(codes) // len(scales))
        for stored in (floats, floats.astype(np.float16)):
            assert stored.tobytes()[:256] not in engine, name
            assert stored.T.tobytes()[:256] not in engine, name  # .T.tobytes() is column by column


def test_a_bundle_with_engines_is_sealed_and_says_what_they_are(trt: Any, bundles: Bundles) -> None:
    folder = bundles(None)
    manifest = read_manifest(folder)
    made = manifest.engines
    assert made is not None
    assert [one.graph for one in made.built] == list(GRAPHS)
    sealed = {file.path: file for file in manifest.files}
    for one in made.built:
        assert sealed[one.path].role == "engine"
        assert one.sha256 == sealed[one.path].sha256 == digest(folder / one.path)
        assert one.graph_sha256 == sealed[f"graphs/{one.graph}.onnx"].sha256
        assert one.weights_sha256 == sealed["graphs/weights.bin"].sha256
        assert (one.runtime, one.version) == ("tensorrt-rtx", trt.__version__)
        assert one.sm == [89]
    assert made.precision == manifest.compute == "fp16"
    assert manifest.gate is not None
    assert manifest.gate.provider == "CPUExecutionProvider"
    assert "CPUExecutionProvider of ONNX Runtime" in (folder / "report.html").read_text()
    assert f"tensorrt-rtx {trt.__version__}" in describe(manifest)
    verdict = verify(folder, Progress())
    assert not verdict.damaged
    assert not verdict.unknown


def test_the_default_build_makes_the_two_engines_that_it_needs(trt: Any, tmp_path: Path) -> None:
    """The reference model as it comes, through its gate."""
    manifest = build(None, "rtx-40", tmp_path / "b", BuildOptions("w4a16-rtn"))
    assert isinstance(manifest, Manifest)
    assert manifest.gate is not None
    assert manifest.gate.passed
    assert manifest.engines is not None
    assert [one.graph for one in manifest.engines.built] == ["full", "cached"]
    assert sorted(p.name for p in (tmp_path / "b" / "engines").iterdir()) == [
        "cached.plan", "full.plan",
    ]  # fmt: skip


def test_the_bundle_builds_another_engine_itself(bundles: Bundles, tmp_path: Path) -> None:
    """By its own build_engine.py, which knows nothing of this project."""
    folder = bundles(None)
    for name in ("manifest.json", "build_engine.py", "graphs"):
        (tmp_path / name).symlink_to(folder / name)
    command = [sys.executable, "-I", str(tmp_path / "build_engine.py"), str(tmp_path)]
    done = subprocess.run(
        [*command, "--graph", "full-sample"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "engines/full-sample.plan\n"
    (record,) = json.loads((tmp_path / "engines" / "engines.json").read_text())
    assert record["sha256"] == digest(tmp_path / "engines" / "full-sample.plan")


def test_the_command_adds_an_engine_and_keeps_those_that_are_sealed(
    bundles: Bundles, tmp_path: Path
) -> None:
    folder = tmp_path / "b"
    shutil.copytree(bundles(None), folder)
    sealed = content(folder)
    outcome = dqexport("engine", folder, "--graph", "full-sample", "--json")
    assert outcome.code == 0, outcome.err
    (made,) = json.loads(outcome.out)
    manifest = read_manifest(folder)
    engines = read_engines(folder)
    assert engines is not None
    (added,) = engines.of("full-sample")
    assert added.path == made["path"]
    assert why_refused(added, engines, Here("tensorrt-rtx", made["version"], 89)) is None
    assert sealed.items() <= content(folder).items()
    verdict = verify(folder, Progress())
    assert verdict.sound == (manifest.gate is not None and manifest.gate.passed)
    assert not verdict.unknown
    again = dqexport("engine", folder, "--graph", "full", "--graph", "full-sample")
    assert again.out.split() == [f"{folder}/engines/{n}.plan" for n in ("full", "full-sample")]
    assert again.err.count("is there, built of the same") == 2
    forced = dqexport("engine", folder, "--force")
    assert_refused(forced, "came with the engine of full", "--graph")
    assert_refused(dqexport("engine", folder, "--graph", "half"), "`half`", "full-sample")


@pytest.mark.parametrize("sm", [86, 120])
def test_engines_of_other_cards_build(trt: Any, bundles: Bundles, sm: int) -> None:
    folder = bundles(None)
    manifest = read_manifest(folder)
    assert manifest.engines is not None
    for plan in manifest.engines.plans:
        if plan.default:
            file = folder / "graphs" / f"{plan.graph}.onnx"
            assert serialized(trt, file, [sm], plan.profiles).nbytes


RULES = GraphRules(capacity=CANVAS)
FORMATS = (
    ("llada", "w8a8-rtn", QuantOptions()),
    ("llada", "w4a4-rtn", QuantOptions()),
    ("llada", "w4a8-rtn", QuantOptions(activation="group")),
    ("llada", "fp32", QuantOptions()),
    ("sdar", "fp16", QuantOptions()),
    ("lladamoe", "w4a16-rtn", QuantOptions()),
    ("llada2", "w4a16-rtn", QuantOptions()),
)


@pytest.mark.parametrize(("family", "recipe", "quant"), FORMATS)
def test_families_and_formats_build(
    trt: Any, family: str, recipe: str, quant: QuantOptions, tmp_path: Path
) -> None:
    for name in ("full", "cached"):
        assert engine_of(trt, family, recipe, quant, RULES, name, tmp_path / name).nbytes


REFUSED = (
    ("llada", "w4a16-rtn", QuantOptions(), GraphRules(), "sequence length"),  # fixed_capacity
    ("llada", "w4a16-rtn", QuantOptions(kv_bits=8), RULES, "Int8"),  # cache_bits
    ("sdar", "w4a16-rtn", QuantOptions(), RULES, "whole blocks"),  # uneven_groups
    ("llada", "w4a8-rtn", QuantOptions(), RULES, "Int4"),  # widens_int4
)


@pytest.mark.parametrize(("family", "recipe", "quant", "rules", "says"), REFUSED)
def test_what_targets_rule_out_is_refused_by_tensorrt(
    trt: Any,
    family: str,
    recipe: str,
    quant: QuantOptions,
    rules: GraphRules,
    says: str,
    tmp_path: Path,
) -> None:
    """Once one of these builds, the property of the target that forbids it can go."""
    with pytest.raises(EngineError, match=says):
        engine_of(trt, family, recipe, quant, rules, "cached", tmp_path)


def test_what_tensorrt_refuses_ends_the_build_with_its_reason(
    bundles: Bundles, tmp_path: Path
) -> None:
    folder = bundles(None)
    manifest = read_manifest(folder)
    assert manifest.engines is not None
    (tmp_path / "graphs").mkdir()
    (tmp_path / "graphs" / "full.onnx").write_bytes(b"no graph")
    (tmp_path / "graphs" / "weights.bin").write_bytes(b"no weights")
    unbuilt = manifest.engines.model_copy(update={"built": []})
    draft = manifest.model_copy(update={"engines": unbuilt})
    (tmp_path / "manifest.json").write_text(draft.model_dump_json())
    with pytest.raises(UserError, match=r"full\.onnx is not understood"):
        engines.build_engines(tmp_path, manifest.engines, ["full"], Progress())


def engine_of(
    trt: Any,
    family: str,
    recipe: str,
    quant: QuantOptions,
    rules: GraphRules,
    name: str,
    folder: Path,
) -> Any:
    """An engine of the graph `name` of a golden checkpoint, in fp16 unless the recipe is fp32."""
    lowered = lower(golden(family), recipe, folder, quant, compute="fp16", rules=rules)
    settings = Settings(gen_length=16, block_length=8)
    (plan,) = (p for p in plan_engines(KINDS, settings, CANVAS, 1) if p.graph == name)
    return serialized(trt, lowered.graph(KIND[name]), SM, plan.profiles)


KINDS = graph_kinds(logits=False)
KIND: dict[str, GraphKind] = {kind.name: kind for kind in KINDS}


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
