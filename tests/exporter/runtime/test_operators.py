"""A bundle with operators of our own: built, run with and without its library, damaged."""

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.build import BuildOptions, build
from exporter.decoding import DecodeOptions
from exporter.progress import Progress
from exporter.runtime.operators import BUILT, FOLDER, find_library
from exporter.verify import verify
from ort_ops.build import library_name

OPTIONS = BuildOptions("w4a8-rtn", decode=DecodeOptions(gen_length=8), calib_prompts=4)
PROMPT = "__A123+456="


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("operators") / "bundle"
    build(None, "cpu", out, OPTIONS)
    return out


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def decode(folder: Path, *options: str, **environment: str) -> tuple[list[int], str]:
    """The new ids of a run of decode.py, and what it said on stderr."""
    command = [sys.executable, str(folder / "decode.py"), "--prompt", PROMPT, "--json", *options]
    path = {"PATH": "/usr/bin:/bin", **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=path)
    ids: list[int] = json.loads(done.stdout)["new"]
    return ids, done.stderr


def library(folder: Path) -> Path:
    return folder / FOLDER / library_name()


def test_the_manifest_counts_operators_and_seals_the_library(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    layers = manifest["model"]["layers"]
    assert manifest["operators"] == {
        "DqxAttention": layers,
        "DqxGatedW4A8Channel": layers,
        "DqxLinearW4A8Channel": 5 * layers,
        "DqxLinearW8A16": 1,
    }
    plugins = [file["path"] for file in manifest["files"] if file["role"] == "plugin"]
    assert f"{FOLDER}/{library_name()}" in plugins
    assert f"{FOLDER}/ort_ops/build.py" in plugins


def test_standard_operators_give_the_same_tokens(bundle: Path) -> None:
    with_library, said = decode(bundle)
    assert said == ""
    assert decode(bundle, "--no-operators")[0] == with_library


def test_the_gate_holds_for_standard_operators_too(bundle: Path) -> None:
    verdict = verify(bundle, Progress(), operators=False)
    assert verdict.sound and verdict.gate is not None
    assert verdict.gate.token_agreement == 1


def test_a_missing_library_is_built_from_the_sources(copy: Path) -> None:
    """As on a machine of another kind."""
    expected, _ = decode(copy)
    library(copy).unlink()
    ids, said = decode(copy)
    assert ids == expected and "building the operators" in said
    assert find_library(copy) == copy / FOLDER / BUILT / library_name()
    assert decode(copy)[1] == ""
    verdict = verify(copy, Progress())
    assert verdict.unknown == []  # what was built here is no stranger
    assert list(verdict.damaged) == [f"{FOLDER}/{library_name()}"]


def test_without_library_and_compiler_standard_operators_run(copy: Path) -> None:
    expected, _ = decode(copy)
    library(copy).unlink()
    ids, said = decode(copy, CXX="no-such-compiler")
    assert ids == expected and "no C++ compiler" in said and "standard operators run" in said


def test_a_damaged_library_is_left_aside(copy: Path) -> None:
    expected, _ = decode(copy)
    library(copy).write_bytes(b"not a library")
    ids, said = decode(copy)
    assert ids == expected and "cannot be loaded" in said


def test_a_build_without_operators_has_standard_ones(tmp_path: Path) -> None:
    options = BuildOptions("w4a16-rtn", gate_prompts=1, gate=False, operators=False)
    manifest = build(None, "cpu", tmp_path / "plain", options)
    assert manifest is not None and manifest.operators == {}
    assert not (tmp_path / "plain" / FOLDER).exists()
    assert find_library(tmp_path / "plain") is None


def test_level_4_rounds_the_inputs_of_our_operators(tmp_path: Path) -> None:
    options = BuildOptions("w4a16-rtn", gate_prompts=1, gate=False, accuracy_level=4)
    manifest = build(None, "cpu", tmp_path / "fast", options)
    assert manifest is not None
    assert set(manifest.operators) == {"DqxLinearW4A8", "DqxGatedW4A8", "DqxLinearW8A8"}


def test_the_library_is_of_this_kind_of_machine(bundle: Path) -> None:
    assert platform.machine() in library(bundle).name
    assert library(bundle).read_bytes()[:4] == b"\x7fELF"
