"""What is copied into a bundle stands alone: Python 3.10, its library, TensorRT where it builds."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from exporter import device, runtime
from exporter.engines import copy_builder
from tests.engine_bundle import write_bundle

SOURCES = sorted(Path(device.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_a_module_imports_the_standard_library_and_its_own_folder(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 10))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert {alias.name.partition(".")[0] for alias in node.names} <= sys.stdlib_module_names
        elif isinstance(node, ast.ImportFrom):
            ours = node.level == 1 and path.with_name(f"{node.module}.py").is_file()
            outside = not node.level and str(node.module).partition(".")[0]
            assert ours or outside in sys.stdlib_module_names, ast.unparse(node)


def test_no_module_takes_the_place_of_one_of_the_loop() -> None:
    """In a bundle both lie in one folder."""
    loop = {path.name for path in Path(runtime.__file__).parent.glob("*.py")}
    assert loop & {path.name for path in SOURCES} == {"__init__.py"}


def test_the_program_of_a_bundle_needs_no_package(tmp_path: Path) -> None:
    """Without TensorRT it prints what another tool would have to be told; -S: no packages."""
    write_bundle(tmp_path)
    copy_builder(tmp_path)
    command = [sys.executable, "-I", "-S", str(tmp_path / "build_engine.py"), "--trtexec"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["trtexec", "trtexec"]
    assert f"--onnx={tmp_path}/graphs/full.onnx" in lines[0]
    assert not done.stderr
