"""Kernels for GPUs, compiled once for all tests of a run."""

import pytest

from tests.cubins import Compiler


@pytest.fixture(scope="session")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Compiler:
    return Compiler(tmp_path_factory.mktemp("cubins"))
