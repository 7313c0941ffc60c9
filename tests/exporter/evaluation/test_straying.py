"""The gate's figures come out again, and a model does not stray from itself."""

from dataclasses import replace
from pathlib import Path

import pytest

from exporter.evaluation.batches import Item
from exporter.evaluation.items import make_items
from exporter.evaluation.run_folder import Run
from exporter.evaluation.straying import PART, follow, spread, straying
from exporter.evaluation.subject import Hardware, Subject, bundle_subject
from exporter.progress import Progress
from exporter.runtime.bundle import read_bundle
from exporter.runtime.settings import Settings
from exporter.tasks import Example
from exporter.trajectory import Reference
from exporter.verify import read_manifest


def gate_items(bundle: Path, subject: Subject) -> list[Item]:
    """The prompts that the gate of a bundle was run on."""
    reference = Reference.load(bundle / "gate.safetensors")
    prompts = reference.canvases[0][:, : reference.prompt_length].tolist()
    return make_items(subject, [Example("gate", ids=tuple(ids)) for ids in prompts], {}, True)


def test_the_gate_is_measured_again(
    quick_bundle: Path, llada_subject: Subject, tmp_path: Path
) -> None:
    gate = read_manifest(quick_bundle).gate
    assert gate is not None
    subject = bundle_subject(read_bundle(quick_bundle), Hardware(threads=1))
    items = gate_items(quick_bundle, subject)
    lines = follow(subject, llada_subject, items, None, Run(tmp_path, {}), Progress())
    found = straying(lines)
    assert (found.prompts, found.tokens) == (gate.prompts, gate.tokens)
    assert found.token_agreement == gate.token_agreement
    assert found.exact_match == gate.exact_match
    assert found.first_divergence == pytest.approx(gate.first_divergence)
    assert found.forced.positions == gate.positions
    assert found.forced.agreement == gate.argmax_agreement
    assert found.forced.interval == pytest.approx(gate.argmax_interval)
    # the manifest has six significant digits
    assert found.forced.regret == pytest.approx(gate.regret, rel=1e-5)
    assert found.forced.kl == pytest.approx(gate.kl, rel=1e-5)
    by_ratio = [(part.positions, part.agreement) for part in found.by_mask_ratio]
    assert by_ratio == gate.by_mask_ratio
    assert found.forced.regret is not None and found.forced.regret > 0


def test_a_model_does_not_stray_from_itself(llada_subject: Subject, tmp_path: Path) -> None:
    examples = [Example("t", ids=(i, 2 * i, 9), gen_length=8 + i % 2 * 8) for i in range(6)]
    given = {"temperature": 1.0, "seed": 3}  # chance is left out of comparisons
    items = make_items(llada_subject, examples, given, True)
    found = straying(follow(llada_subject, llada_subject, items, 4, Run(tmp_path, {}), Progress()))
    assert found.prompts == len(examples)
    assert found.token_agreement == found.exact_match == found.first_divergence == 1
    assert (
        found.forced.positions
        == found.tokens
        == sum(part.positions for part in found.by_mask_ratio)
    )
    for part in (found.forced, *found.by_mask_ratio):
        assert part.agreement == 1 and part.regret == 0
        assert part.kl == pytest.approx(0, abs=1e-12)


def test_figures_do_not_depend_on_the_batch_and_are_kept(
    quick_bundle: Path, llada_subject: Subject, tmp_path: Path
) -> None:
    subject = bundle_subject(read_bundle(quick_bundle), Hardware(threads=1))
    items = gate_items(quick_bundle, subject)
    runs = [Run(tmp_path / str(rows), {}) for rows in (1, 2)]
    for run in runs:
        run.folder.mkdir()
    one, two = (
        follow(subject, llada_subject, items, rows, run, Progress())
        for rows, run in zip((1, 2), runs, strict=True)
    )
    for a, b in zip(one, two, strict=True):
        exact = ("index", "equal", "first_divergence", "positions", "agreeing")
        assert [getattr(a, name) for name in exact] == [getattr(b, name) for name in exact]
        assert a.kl == pytest.approx(b.kl, rel=1e-3, abs=1e-9)  # fp32 sums in another order
    file = runs[0].folder / f"{PART}.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[: whole.index(b"\n") + 9])
    assert follow(subject, llada_subject, items, 1, runs[0], Progress()) == one
    assert file.read_bytes() == whole


def test_prompts_are_taken_from_all_tasks() -> None:
    settings = Settings()
    items = [Item(i, Example("abc"[i // 4]), (1,), settings) for i in range(12)]
    assert [item.index for item in spread(items, 5)] == [0, 1, 4, 5, 8]
    assert spread(items, 99) == items
    lone = [replace(item, example=Example("a")) for item in items]
    assert spread(lone, 3) == lone[:3]
