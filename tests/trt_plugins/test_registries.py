"""The library in the registries of TensorRT 10, 11 and TensorRT for RTX, as far as installed.

Packages that need no GPU: tensorrt-lean-cu13, tensorrt-dispatch-cu13, the `rtx` extra.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.plugin_harness import needs_plugins

pytestmark = [pytest.mark.trt, needs_plugins]
PROBE = Path(__file__).parents[1] / "registry_probe.py"


@pytest.mark.parametrize(
    "module", ["tensorrt_rtx_bindings", "tensorrt", "tensorrt_lean", "tensorrt_dispatch"]
)
def test_a_registry_takes_the_library(library: Path, module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    command = [sys.executable, str(PROBE), module, str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "DqxLinearW4A8" in found["creators"] and "DqxKvUpdate" in found["creators"]
    assert found["made"] == [True, True]
    assert found["wrong"] == [False, False]
    assert done.stderr.count("DqxLinearW4A8: step = -1 has to be positive") == 2
