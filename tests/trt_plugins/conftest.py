"""What takes some seconds to compile, once for all tests."""

from pathlib import Path

import pytest

from tests.once import made_once
from tests.plugin_harness import Harness, compile_plugins
from trt_plugins.build import build_library, library_name


@pytest.fixture(scope="session")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Harness:
    return Harness(made_once(tmp_path_factory, "plugins", compile_plugins))


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of the host as it is deployed, for parsers and builders."""
    folder = made_once(tmp_path_factory, "library", lambda folder: build_library(folder, None))
    return folder / library_name(None)
