"""TensorRT for RTX 1.7 looks for its library under a name that its package does not have.

The parser opens `libtensorrt_rtx.so` when it adds the first plugin, and ends the process where
there is none; the package has `libtensorrt_rtx.so.1`. A link of that name must lie in
LD_LIBRARY_PATH before a process starts.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

PACKAGE, LINK, LIBRARY = "tensorrt_rtx_libs", "libtensorrt_rtx.so", "libtensorrt_rtx.so.1"
VARIABLE = "LD_LIBRARY_PATH"


def packaged() -> Path | None:
    """The library of the pip package; None: it is installed otherwise."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = (spec and spec.submodule_search_locations) or ()
    found = (Path(folder) / LIBRARY for folder in folders)
    return next((path for path in found if path.is_file()), None)


def linked(library: Path) -> bool:
    """Whether the parser will find the library: beside itself, or where the variable says."""
    folders = [library.parent, *map(Path, filter(None, os.environ.get(VARIABLE, "").split(":")))]
    return any((folder / LINK).exists() for folder in folders)


def run_again() -> int | None:
    """This very command in a process that has the link; its exit code.

    None: that is not needed, go on here.
    """
    library = packaged()
    if library is None or linked(library):
        return None
    with TemporaryDirectory(prefix="dqx-") as folder:
        (Path(folder) / LINK).symlink_to(library)
        path = os.pathsep.join(filter(None, [folder, os.environ.get(VARIABLE)]))
        command = [sys.executable, *sys.orig_argv[1:]]
        return subprocess.run(command, env={**os.environ, VARIABLE: path}, check=False).returncode
