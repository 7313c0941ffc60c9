"""`dqexport tune` on a real bundle: changes the manifest, keeps it sound, refuses nonsense."""

import json
import shutil
from pathlib import Path

import pytest

from exporter.runtime.bundle import read_bundle
from exporter.tasks import reference_folder
from exporter.verify import check_seal, read_manifest
from tests.commands import assert_refused, content, dqexport

TASKS = reference_folder() / "tasks" / "addition.jsonl"
FAST = ("--tasks", TASKS, "--limit", "2", "--rounds", "1", "--timed", "1")


@pytest.fixture(scope="module")
def tuned(reference_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:  # type: ignore[type-arg]
    """A tuned copy of the reference bundle, and what the command printed."""
    bundle = tmp_path_factory.mktemp("tuned") / "bundle"
    shutil.copytree(reference_bundle, bundle)
    outcome = dqexport("tune", bundle, *FAST, "--json")
    assert outcome.code == 0, outcome.err
    return bundle, json.loads(outcome.out)


def test_the_winner_becomes_the_default_and_what_was_before_is_kept(
    tuned: tuple[Path, dict],  # type: ignore[type-arg]
    reference_bundle: Path,
) -> None:
    bundle, found = tuned
    before, after = read_manifest(reference_bundle), read_manifest(bundle)
    assert after.tuned is not None
    assert after.tuned.before == before.decode == after.gated
    assert after.gate == before.gate
    chosen = read_bundle(bundle).decode
    assert {name: getattr(chosen, name) for name in found["best"]["decode"]} == found["best"][
        "decode"
    ]
    assert after.tuned.prompts == 2
    assert found["trials"][0]["name"] == "as built"
    fastest = min(t["seconds"] for t in found["trials"] if t["against"]["difference"] >= -0.01)
    assert found["best"]["seconds"] == fastest
    assert after.tuned.speedup >= 1


def test_a_tuned_bundle_is_sound_and_decodes(tuned: tuple[Path, dict]) -> None:  # type: ignore[type-arg]
    bundle, _ = tuned
    assert check_seal(bundle) == {}
    outcome = dqexport("verify", bundle)
    assert outcome.code == 0, outcome.err
    outcome = dqexport("run", bundle, "--prompt", "__A123+456=", "--json")
    assert outcome.code == 0, outcome.err


def test_table_and_plot_lie_beside_the_bundle(tuned: tuple[Path, dict]) -> None:  # type: ignore[type-arg]
    bundle, found = tuned
    out = bundle.with_name("bundle-tune")
    assert (out / "table.md").read_text().count("\n") == 2 + len(found["trials"])
    assert "<svg" in (out / "frontier.svg").read_text()


def test_a_bundle_that_was_changed_by_hand_is_refused(
    reference_bundle: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(reference_bundle, bundle)
    manifest = bundle / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"seed":0', b'"seed":1') + b" ")
    before = content(bundle)
    assert_refused(dqexport("tune", bundle, *FAST), "is damaged", "Copy the bundle again")
    assert content(bundle) == before
    assert not bundle.with_name("bundle-tune").exists()


def test_tasks_without_answers_and_folders_without_a_bundle_are_refused(
    reference_bundle: Path, tmp_path: Path
) -> None:
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text('{"prompt": "__A123+456="}\n')
    out = tmp_path / "out"
    outcome = dqexport("tune", reference_bundle, "--tasks", tasks, "-o", out)
    assert_refused(outcome, "No example has an answer", "Give tasks with answers")
    assert not out.exists()
    assert_refused(dqexport("tune", tmp_path, *FAST), "has no manifest.json", "Give the folder")
