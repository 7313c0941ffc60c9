"""Subjects that decode in milliseconds, and examples for them."""

from pathlib import Path

import pytest

from exporter.evaluation.subject import Hardware, Subject, bundle_subject, open_subject
from exporter.progress import Progress
from exporter.runtime.bundle import read_bundle
from exporter.tasks import Example
from tests.commands import GOLDEN
from tests.exporter.conftest import Golden, open_golden
from tests.tiny_bundle import write_bundle

WORDS = ("sun", "moon", "ice", "sand", "dew", "hail", "fog", "rain", "mist", "snow", "sky")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a few matrix products; one token is one byte."""
    folder = tmp_path_factory.mktemp("tiny") / "bundle"
    write_bundle(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Subject:
    return bundle_subject(read_bundle(tiny_folder), Hardware(threads=1))


@pytest.fixture(scope="session")
def llada_subject() -> Subject:
    """The golden LLaDA checkpoint, as it is."""
    return open_subject(str(GOLDEN / "llada"), Hardware(), Progress())


@pytest.fixture(scope="session")
def examples() -> list[Example]:
    """Prompts of two lengths and two answer lengths, mixed."""
    return [
        Example("sky" if len(word) == 3 else "earth", word, "?", 8 if i % 3 else 16)
        for i, word in enumerate(WORDS)
    ]


@pytest.fixture(scope="session")
def golden_models() -> dict[str, Golden]:
    """The golden checkpoints by family."""
    return {family: open_golden(family) for family in ("llada", "dream")}
