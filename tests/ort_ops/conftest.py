"""Kernels for GPUs, and launchers for the host, compiled once for all tests of a run."""

import pytest

from tests.cubins import Compiler
from tests.launched import Launched
from tests.launched_linear import linear_launcher


@pytest.fixture(scope="session")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Compiler:
    return Compiler(tmp_path_factory.mktemp("cubins"))


@pytest.fixture(scope="session", params=["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def linears(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """The launcher of linears."""
    return linear_launcher(tmp_path_factory, request.param == "gpu")
