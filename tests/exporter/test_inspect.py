"""Bundles, targets and recipes are described in full."""

from pathlib import Path

import pytest

import targets
from exporter import recipe_names
from exporter.inspect import describe, gate_lines, recipe_rows, target_rows
from exporter.manifest import PassRecord, PredictedForward, Prediction
from exporter.quant_options import QuantOptions
from exporter.recipes import make_recipe
from exporter.verify import read_manifest
from tests.exporter.conftest import Golden


def test_a_bundle_on_one_screen(reference_bundle: Path) -> None:
    manifest = read_manifest(reference_bundle)
    text = describe(manifest)
    lines = text.splitlines()
    assert len(lines) < 24 and max(map(len, lines)) < 160
    for fact in (manifest.model.name, manifest.recipe, "full, full-sample, full-guided", "Tmas(",
                 "Gptq(", f"mask {manifest.model.mask_id}", "gate        passed"):  # fmt: skip
        assert fact in text
    assert text.count("Gptq(") == 1  # not once a block
    size = sum(file.stat().st_size for file in reference_bundle.rglob("*") if file.is_file())
    shown = float(text.partition("size        ")[2].split()[0])
    # the manifest and its seal are not counted; the figure is rounded to a tenth
    uncounted = (reference_bundle / "manifest.json").stat().st_size + 65
    assert shown == pytest.approx((size - uncounted) / 2**20, abs=0.05)


def test_float_and_failed_bundles(float_bundles: dict[str, Path], quick_bundle: Path) -> None:
    float_text = describe(read_manifest(float_bundles["dream"]))
    assert "passes      none" in float_text and "shifted logits" in float_text
    assert "unshifted" not in float_text
    assert "FAILED" in describe(read_manifest(quick_bundle))
    assert gate_lines(None) == ["gate        not run"]


def test_what_was_chosen_for_attention_is_shown(reference_bundle: Path) -> None:
    manifest = read_manifest(reference_bundle)
    assert "\nattention " not in describe(manifest)
    records = [
        PassRecord(step="ChooseAttention(limit=0.01)", where=f"block {n}", stats={"chosen": chosen})
        for n, chosen in enumerate((0, 1, 0, 2))
    ]
    shown = describe(manifest.model_copy(update={"passes": records}))
    assert (
        "attention   integers in blocks 0, 2; float values in block 1; floats in block 3" in shown
    )


def test_a_prediction_is_shown_where_there_is_one(reference_bundle: Path) -> None:
    manifest = read_manifest(reference_bundle)
    assert manifest.prediction is None and "floor" not in describe(manifest)
    forward = PredictedForward(
        graph="cached", tokens=32, canvas=1024, bytes=2_500_000_000,
        operations={"int8": 4 * 10**11, "fp16": 10**11}, milliseconds=12.345, bound="memory",
    )  # fmt: skip
    predicted = Prediction(
        bandwidth_gb_s=204.8, tops={"int8": 85}, power_mode="MAXN", forwards=[forward]
    )
    text = describe(manifest.model_copy(update={"prediction": predicted}))
    assert "floor       at 204.8 GB/s, 85 TOPS int8 in MAXN" in text
    shown = "cached: 32 tokens on 1024, 12.3 ms, bound by memory: 2.5 GB, 0.5 T operations"
    assert shown in text


def test_every_target_is_listed_with_a_recipe_that_exists() -> None:
    rows = target_rows()
    assert [row["name"] for row in rows] == targets.names()
    for row in rows:
        assert row["recipe"] in recipe_names.names()
        assert row["title"] and row["build"]


def test_every_listed_recipe_can_be_made(llada: Golden) -> None:
    """Bits on their own; methods and components behind bits that take them all."""
    about = {row["name"]: row["about"] for row in recipe_rows()}
    assert all(about.values())
    for name in about:
        full = name if name in recipe_names.BITS else f"w4a4{'-gptq' * name.startswith('+')}{name}"
        made = make_recipe(full, llada.checkpoint.spec, QuantOptions(), "fp32")
        assert made.name in (full, f"{full}-dllmquant")
    assert "dllmquant is quarot+smooth+tmas+cgq+iaaq" in about["w4a4"]
