"""The link that TensorRT for RTX misses, in a process that is started again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from exporter.device import rtx_link

ROOT = Path(__file__).parents[3]
PROGRAM = """
import os, sys
sys.path[:0] = sys.argv[1:3]
from exporter.device import rtx_link
code = rtx_link.run_again()
if code is not None:
    sys.exit(code + 1)
library = rtx_link.packaged()
print(library is not None and rtx_link.linked(library), os.environ.get("LD_LIBRARY_PATH"))
sys.exit(6)
"""


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A folder with a package that has the library under its long name."""
    folder = tmp_path / "packages" / rtx_link.PACKAGE
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / rtx_link.LIBRARY).touch()
    return folder.parent


def start(packages: Path, path: str | None) -> tuple[int, str]:
    """Exit code and output of a program that asks for the link."""
    others = {key: value for key, value in os.environ.items() if key != "LD_LIBRARY_PATH"}
    environment = others | ({"LD_LIBRARY_PATH": path} if path else {})
    # -S: a package that is installed would be found before
    command = [sys.executable, "-S", "-c", PROGRAM, str(packages), str(ROOT)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, cwd=packages
    )
    assert not done.stderr
    return done.returncode, done.stdout.strip()


@pytest.mark.parametrize("before", [None, "/somewhere"])
def test_a_process_starts_again_once_and_gives_its_code_back(
    packages: Path, before: str | None
) -> None:
    code, said = start(packages, before)
    assert code == 7  # 6 of the second, 1 of the first
    found, path = said.split()
    assert found == "True"
    folder, *rest = path.split(os.pathsep)
    assert rest == ([before] if before else [])
    assert not Path(folder).exists()


def test_a_link_beside_the_library_is_enough(packages: Path) -> None:
    (packages / rtx_link.PACKAGE / rtx_link.LINK).symlink_to(rtx_link.LIBRARY)
    assert start(packages, None) == (6, "True None")


def test_where_there_is_no_package_there_is_nothing_to_link(tmp_path: Path) -> None:
    assert start(tmp_path, None) == (6, "False None")
