"""Checkpoints opened and bundles built once for all tests of the pipeline."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from exporter.checkpoint import Checkpoint, open_checkpoint
from exporter.decoding import describe_model, loop_facts
from exporter.float_session import FloatModel
from exporter.runtime.bundle import ModelFacts
from tests.commands import GOLDEN, QUICK_W4, build


@dataclass(frozen=True)
class Golden:
    """A golden checkpoint, opened."""

    checkpoint: Checkpoint
    model: FloatModel
    facts: ModelFacts


@pytest.fixture(scope="session", params=["llada", "dream"])
def golden(request: pytest.FixtureRequest) -> Golden:
    """The golden checkpoint of each family."""
    return open_golden(request.param)


@pytest.fixture(scope="session")
def llada() -> Golden:
    return open_golden("llada")


def open_golden(family: str) -> Golden:
    checkpoint = open_checkpoint(GOLDEN / family, eot_id=197 if family == "llada" else None)
    spec = checkpoint.spec
    facts = describe_model(checkpoint, "digest", spec.vocab_size, spec.max_length)
    return Golden(checkpoint, FloatModel(checkpoint), loop_facts(facts))


@pytest.fixture(scope="session")
def float_bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """fp32 bundles of the golden checkpoints, with logits, by family."""
    folder = tmp_path_factory.mktemp("golden")
    for family, options in (("llada", ["--eot-id", "197"]), ("dream", [])):
        build(
            GOLDEN / family, *options, "--recipe", "fp32", "--target", "cpu", "--outputs", "logits",
            "--gen-length", "32", "--gate-prompts", "4", "-o", folder / family,
        )  # fmt: skip
    return {family: folder / family for family in ("llada", "dream")}


@pytest.fixture(scope="session")
def quick_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small w4a16 bundle of a golden checkpoint that has failed its gate."""
    out = tmp_path_factory.mktemp("quick") / "bundle"
    build(*QUICK_W4, "-o", out)
    return out


@pytest.fixture(scope="session")
def reference_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference model as `dqexport build` makes it without any option."""
    out = tmp_path_factory.mktemp("reference") / "bundle"
    build("-o", out)
    return out
