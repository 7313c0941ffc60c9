"""The gate measures what it says, passes an equal model and fails a damaged one."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from exporter import report
from exporter.agreement import divergence, give_up, wilson
from exporter.checkpoint import open_checkpoint
from exporter.decoding import comparable
from exporter.emit import GATE, MANIFEST
from exporter.float_session import FloatModel, FloatSession
from exporter.gate import measure, usable_provider
from exporter.inspect import gate_lines
from exporter.manifest import GateResult
from exporter.progress import Progress
from exporter.recipe_names import Limits
from exporter.runtime.bundle import read_bundle
from exporter.runtime.loop import generate
from exporter.trajectory import Reference
from exporter.verify import read_manifest
from tests.commands import GOLDEN

IDS = 12
VOCAB = 208  # of the golden LLaDA
Floats = npt.NDArray[np.float64]
# p ranges over more than four orders of magnitude; the rest of q is then at least 4e-6, so that its
# rounding error, 12 eps, is below 1e-9 of it
LOGITS = hnp.arrays(np.float64, IDS, elements=st.floats(-5, 5))
ROUNDING = 1e-8


def log_p(logits: Floats) -> Floats:
    return np.asarray(logits - np.logaddexp.reduce(logits), np.float64)


def best(logp: Floats, count: int) -> tuple[npt.NDArray[np.int64], Floats]:
    ids = np.argsort(-logp)[:count]
    return ids, logp[ids]


@given(p=LOGITS, q=LOGITS, top=st.integers(1, IDS))
def test_divergence_is_at_most_the_true_one(p: Floats, q: Floats, top: int) -> None:
    log_ps, log_qs = log_p(p), log_p(q)
    found = divergence(*best(log_ps, top), *best(log_qs, top))
    assert 0 <= found <= float((np.exp(log_ps) * (log_ps - log_qs)).sum()) + ROUNDING


@given(p=LOGITS, top=st.integers(1, IDS))
def test_divergence_of_equals_is_zero(p: Floats, top: int) -> None:
    assert divergence(*best(log_p(p), top), *best(log_p(p), top)) <= ROUNDING


@given(p=LOGITS, q=LOGITS)
def test_divergence_over_all_ids_is_exact(p: Floats, q: Floats) -> None:
    log_ps, log_qs = log_p(p), log_p(q)
    exact = float((np.exp(log_ps) * (log_ps - log_qs)).sum())
    assert divergence(*best(log_ps, IDS), *best(log_qs, IDS)) == pytest.approx(exact, abs=ROUNDING)


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_published_values(hits: int, count: int, low: float, high: float) -> None:
    assert wilson(hits, count) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson(count - hits, count)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


def measure_again(bundle: Path, limits: Limits) -> GateResult:
    settings = comparable(read_bundle(bundle).decode)
    return measure(bundle, Reference.load(bundle / GATE), settings, limits, Progress())


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_the_float_model_itself_agrees_fully(float_bundles: dict[str, Path], family: str) -> None:
    gate = read_manifest(float_bundles[family]).gate
    assert gate is not None and gate.passed
    assert gate.argmax_agreement == gate.token_agreement == gate.exact_match == 1
    assert gate.first_divergence == 1 and gate.regret == 0
    # log p is off by 1.6e-4 at most in each of two evaluations (see test_calibrate); near its
    # minimum, KL is at most the square of that over 2, and float64 rounding
    assert gate.kl <= (2 * 1.6e-4) ** 2 / 2
    assert gate.argmax_interval[0] < 1 == pytest.approx(gate.argmax_interval[1])
    assert (gate.prompts, gate.tokens, gate.positions) == (4, 128, 128)


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_the_default_cache_is_told_and_changes_no_verdict(
    float_bundles: dict[str, Path], tmp_path: Path, cache: str
) -> None:
    """Held against the float model's own loop with that cache: the bundle computes the same."""
    bundle = shutil.copytree(float_bundles["llada"], tmp_path / "bundle")
    plain = measure_again(bundle, Limits(1.0, 1.0))
    assert plain.cache is None and plain.cached_agreement is None
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["decode"] |= {"cache": cache, "block_length": 8}
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    reference = Reference.load(bundle / GATE)
    settings = replace(comparable(read_bundle(bundle).decode), sampler="threshold", threshold=0.2)
    found = measure(bundle, reference, settings, Limits(1.0, 1.0), Progress())
    assert found.cache == cache and found.cached_agreement is not None
    assert found.passed and (found.regret, found.kl) == (plain.regret, plain.kl)

    start, keep = reference.prompt_length, reference.key_mask.astype(bool)
    canvas = reference.canvases[0].copy()
    model = read_bundle(bundle).model
    session = FloatSession(FloatModel(open_checkpoint(GOLDEN / "llada", eot_id=197)), VOCAB)
    generate(session, model, replace(settings, cache=cache), canvas, start, keep)
    same = (canvas == reference.answer)[:, start:]
    assert found.cached_agreement == pytest.approx(float(same.mean()))
    assert any(found.cache in line for line in gate_lines(found))
    changed = read_manifest(float_bundles["llada"]).model_copy(update={"gate": found})
    report.write(bundle, changed)
    assert f"{cache} cache" in (bundle / "report.html").read_text()


def test_bins_of_the_mask_ratio_add_up(quick_bundle: Path) -> None:
    gate = read_manifest(quick_bundle).gate
    assert gate is not None and len(gate.by_mask_ratio) == 4
    assert sum(count for count, _ in gate.by_mask_ratio) == gate.positions == 32
    assert all(count > 0 for count, _ in gate.by_mask_ratio)
    hits = sum(count * share for count, share in gate.by_mask_ratio)
    assert hits == pytest.approx(gate.argmax_agreement * gate.positions)
    low, high = gate.argmax_interval
    assert 0 <= low < gate.argmax_agreement < high <= 1
    assert 0 <= gate.first_divergence < 1


def test_regret_is_the_probability_that_is_given_up() -> None:
    p = np.array([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1]])
    ids = np.array([[4, 9, 2], [3, 8, 5]])
    chosen = np.array([4, 3])
    for choices, regret in (([4, 3], [0, 0]), ([9, 8], [0.5, 0.1]), ([1, 1], [0.7, 0.5])):
        found = give_up(ids, np.log(p), chosen, np.array(choices))  # 1 is not listed
        assert found == pytest.approx(regret)


def test_regret_is_at_most_the_share_of_changed_choices(quick_bundle: Path) -> None:
    gate = read_manifest(quick_bundle).gate
    reference = Reference.load(quick_bundle / GATE)
    assert np.array_equal(reference.top_ids[:, 0], reference.commits[:, 3])
    assert gate is not None
    assert 0 < gate.regret <= 1 - gate.argmax_agreement


def test_only_the_verdict_depends_on_the_limits(quick_bundle: Path) -> None:
    built = read_manifest(quick_bundle).gate
    assert built is not None and not built.passed
    regret, kl = built.regret, built.kl
    lenient = measure_again(quick_bundle, Limits(regret, kl))
    assert lenient.passed
    for limits in (Limits(regret, math.nextafter(kl, 0)), Limits(math.nextafter(regret, 0), kl)):
        assert not measure_again(quick_bundle, limits).passed
    update = {
        "passed": False,
        "largest_regret": built.largest_regret,
        "largest_kl": built.largest_kl,
    }
    assert lenient.model_copy(update=update) == built


def places(bundle: Path, suffix: str) -> list[tuple[int, int]]:
    """(offset, bytes) in weights.bin of the tensors whose names end with `suffix`."""
    graph = onnx.load(bundle / "graphs" / "full.onnx", load_external_data=False).graph
    found = []
    for tensor in graph.initializer:
        facts = {entry.key: entry.value for entry in tensor.external_data}
        if tensor.name.endswith(suffix) and facts:
            found.append((int(facts["offset"]), int(facts["length"])))
    return found


def halve_scales(bundle: Path) -> None:
    data = bytearray((bundle / "graphs" / "weights.bin").read_bytes())
    for offset, size in places(bundle, ".scale"):
        scales = np.frombuffer(data, np.float16, size // 2, offset)
        data[offset : offset + size] = (scales / 2).astype(np.float16).tobytes()
    (bundle / "graphs" / "weights.bin").write_bytes(data)


def other_seed(bundle: Path) -> None:
    """Other random weights, as large as before, in the last linear of every block."""
    data = bytearray((bundle / "graphs" / "weights.bin").read_bytes())
    draw = np.random.default_rng(0)
    for offset, size in places(bundle, ".down"):
        weight = np.frombuffer(data, np.float32, size // 4, offset)
        fresh = draw.normal(scale=weight.std(), size=len(weight)).astype(np.float32)
        data[offset : offset + size] = fresh.tobytes()
    (bundle / "graphs" / "weights.bin").write_bytes(data)


def test_halved_scales_fail_the_gate(reference_bundle: Path, tmp_path: Path) -> None:
    gate = read_manifest(reference_bundle).gate
    assert gate is not None and gate.passed
    damaged = shutil.copytree(reference_bundle, tmp_path / "bundle")
    assert len(places(damaged, ".scale")) > 1
    halve_scales(damaged)
    assert not measure_again(damaged, Limits(gate.largest_regret, gate.largest_kl)).passed


def test_weights_of_another_seed_fail_the_gate(
    float_bundles: dict[str, Path], tmp_path: Path
) -> None:
    damaged = shutil.copytree(float_bundles["dream"], tmp_path / "bundle")
    assert len(places(damaged, ".down")) == 3
    other_seed(damaged)
    found = measure_again(damaged, Limits(0.03, 0.1))
    assert not found.passed and found.token_agreement < 1 and found.first_divergence < 1


def test_a_reference_is_read_as_it_was_written(
    float_bundles: dict[str, Path], tmp_path: Path
) -> None:
    file = float_bundles["llada"] / GATE
    reference = Reference.load(file)
    reference.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == file.read_bytes()
    again = Reference.load(tmp_path / "again")
    assert again.prompt_length == reference.prompt_length
    for name in ("key_mask", "answer", "canvases", "commits", "top_ids", "top_logp"):
        assert np.array_equal(getattr(again, name), getattr(reference, name)), name
    assert len(reference.commits) == len(reference.top_ids) == reference.answer[:, 16:].size
    assert (np.diff(reference.top_logp, axis=1) <= 0).all()
    changed = replace(reference, prompt_length=3)
    changed.save(tmp_path / "changed")
    assert Reference.load(tmp_path / "changed").prompt_length == 3


def test_a_missing_provider_is_replaced_by_the_processor() -> None:
    assert usable_provider(["QuantumExecutionProvider"]) == "CPUExecutionProvider"
    assert usable_provider(["QuantumExecutionProvider", "CPUExecutionProvider"]) == (
        "CPUExecutionProvider"
    )
