"""What takes some seconds to compile, once for all tests."""

from pathlib import Path

import pytest

from tests.plugin_harness import Harness, compile_plugins
from trt_plugins.build import build_library


@pytest.fixture(scope="session")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Harness:
    return compile_plugins(tmp_path_factory.mktemp("plugins"))


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of the host as it is deployed, for parsers and builders."""
    return build_library(tmp_path_factory.mktemp("library"), None)
