"""The plugin library that an engine is built with: compiled here, or the one that is there.

Its sources lie in the bundle, below `plugins`, with the program that compiles them. The builder
asks a library for names, shapes and types, so one of the host's will do; what runs is for a GPU.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .build_error import EngineError
from .builder_log import say

SOURCES, BUILT, PROGRAM = "plugins", "built", "trt_plugins/build.py"


def compiler(folder: Path, plugins: str) -> Any:
    """build.py of the plugins in the bundle `folder`, whose sources must have the digest `plugins`.

    Raises EngineError where they have not.
    """
    path = folder / SOURCES / PROGRAM
    spec = importlib.util.spec_from_file_location("dqx_build_plugins", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise EngineError(f"{path} is missing", "Copy or build the bundle again")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if module.source_digest(folder / SOURCES) != plugins:
        raise EngineError(
            f"The plugins below {folder / SOURCES} are not those that the manifest states",
            "Copy or build the bundle again",
        )
    return module


def on_device(folder: Path, build: Any, sm: int) -> Path:
    """The library for the GPU at hand, below the bundle. Raises EngineError."""
    library = folder / SOURCES / BUILT / str(build.library_name(sm))
    if library.is_file():
        return library
    say(f"compiling the plugins for SM {sm}, once")
    try:
        return Path(build.build_library(library.parent, sm, folder / SOURCES))
    except build.BuildError as error:
        raise EngineError(f"the plugins cannot be compiled: {error}") from error


def ahead_of_time(folder: Path, build: Any, sm: Sequence[int], scratch: Path) -> Path:
    """A library to build engines with that run elsewhere. Raises EngineError.

    Those of the GPUs `sm` stay below the bundle. Where they cannot be compiled, which says a
    warning, one of the host's in the folder `scratch` takes their place.
    """
    built = folder / SOURCES / BUILT
    try:
        paths = [built / str(build.library_name(one)) for one in sm]
        made = [
            path if path.is_file() else Path(build.build_library(built, one, folder / SOURCES))
            for path, one in zip(paths, sm, strict=True)
        ]
        return made[0]
    except build.BuildError as error:
        reason = str(error).partition("\n")[0]
        say(f"warning: the plugins are not compiled here, but on the device ({reason})")
    try:
        return Path(build.build_library(scratch, None, folder / SOURCES))
    except build.BuildError as error:
        raise EngineError(f"the plugins cannot be compiled: {error}") from error


def load(trt: Any, library: Path) -> None:
    """Make the plugins known to parser and builder. Raises EngineError."""
    if trt.get_plugin_registry().load_library(str(library)) is None:
        raise EngineError(f"TensorRT {trt.__version__} does not load {library}")
