"""Every byte of a bundle counts."""

import json
import shutil
from pathlib import Path

import pytest

from exporter.emit import MANIFEST, SEAL
from exporter.errors import UserError
from exporter.progress import Progress
from exporter.verify import Verdict, read_manifest, verify
from tests.commands import assert_refused, content, dqexport


@pytest.fixture
def bundle(quick_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(quick_bundle, tmp_path / "bundle")


def named(verdict: Verdict) -> str:
    """All that the verdict says of damage."""
    assert not verdict.sound and verdict.gate is None
    return " ".join(f"{path}: {reason}" for path, reason in verdict.damaged.items())


def test_a_bundle_as_built_is_sound(float_bundles: dict[str, Path]) -> None:
    bundle = float_bundles["dream"]
    verdict = verify(bundle, Progress())
    assert verdict.sound and not verdict.damaged and not verdict.unknown
    assert verdict.files == len(content(bundle))
    assert verdict.gate == read_manifest(bundle).gate


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_one_flipped_bit_is_found_and_named_in_every_file(bundle: Path, place: str) -> None:
    for name, data in content(bundle).items():
        if not data:
            continue
        at = {"first": 0, "middle": len(data) // 2, "last": len(data) - 1}[place]
        flipped = bytes([*data[:at], data[at] ^ 1, *data[at + 1 :]])
        (bundle / name).write_bytes(flipped)
        assert name in named(verify(bundle, Progress()))
        (bundle / name).write_bytes(data)


def test_a_file_that_is_missing_or_cut_is_named(bundle: Path) -> None:
    for name, data in content(bundle).items():
        if name == MANIFEST:
            continue
        (bundle / name).unlink()
        assert f"{name}: missing" in named(verify(bundle, Progress()))
        (bundle / name).write_bytes(data + b"\n")
        assert name in named(verify(bundle, Progress()))
        (bundle / name).write_bytes(data)


def test_without_a_manifest_there_is_no_bundle(bundle: Path) -> None:
    (bundle / MANIFEST).unlink()
    with pytest.raises(UserError, match=MANIFEST):
        verify(bundle, Progress())


def test_files_that_are_not_listed_are_told(bundle: Path) -> None:
    (bundle / "runtime" / "extra.py").write_text("import os")
    (bundle / "graphs" / "weights.bin").unlink()  # a damaged bundle is not run: quick
    for ours in (".work", "runtime/__pycache__"):
        (bundle / ours).mkdir(exist_ok=True)
        (bundle / ours / "file").write_text("ours")
    assert verify(bundle, Progress()).unknown == ["runtime/extra.py"]


@pytest.mark.parametrize(
    "edit",
    [
        lambda facts: facts.update(format=2),
        lambda facts: facts.update(colour="blue"),
        lambda facts: facts.pop("model"),
        lambda facts: facts["decode"].update(steps="many"),
    ],
)
def test_a_manifest_that_is_not_understood_is_refused(bundle: Path, edit: object) -> None:
    facts = json.loads((bundle / MANIFEST).read_text())
    assert callable(edit)
    edit(facts)
    (bundle / MANIFEST).write_text(json.dumps(facts))
    with pytest.raises(UserError, match="damaged"):
        read_manifest(bundle)


def test_the_command_names_the_file_and_fails(bundle: Path) -> None:
    (bundle / "decode.py").write_text("print('other')")
    outcome = dqexport("verify", bundle)
    assert_refused(outcome, "is damaged", "Copy the bundle again")
    assert "damaged: decode.py" in outcome.err
    outcome = dqexport("verify", bundle, "--json")
    facts = json.loads(outcome.out)
    assert outcome.code == 1
    assert list(facts["damaged"]) == ["decode.py"] and facts["sound"] is False
    assert facts["gate"] is None


def test_a_bundle_kept_without_its_gate_is_reported_as_such(quick_bundle: Path) -> None:
    assert_refused(dqexport("verify", quick_bundle), "no longer passes its gate", "build it again")


def test_the_command_tells_what_it_checked(float_bundles: dict[str, Path]) -> None:
    outcome = dqexport("verify", float_bundles["llada"], "--json")
    assert outcome.code == 0, outcome.err
    facts = json.loads(outcome.out)
    assert facts["sound"] is True and facts["gate"]["passed"] is True
    assert (float_bundles["llada"] / SEAL).is_file()
