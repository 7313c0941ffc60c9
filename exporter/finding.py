"""What an examination of the machine finds, and whether Python packages are there."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata, util
from types import ModuleType


@dataclass(frozen=True)
class Finding:
    """One line of the examination."""

    name: str
    ok: bool
    seen: str  # what was found, in words
    hint: str = ""  # what to do, where something is to be done
    optional: bool = False  # needed by some targets or tools only: not ok is no fault


def package(name: str, distributions: Sequence[str], optional: bool) -> Finding:
    """Whether the module `name` is installed and can be imported, and its version.

    `distributions` provide it; the first is the one to suggest.
    """
    hint = f"pip install {distributions[0]}"
    if not is_installed(name):
        return Finding(name, False, "not installed", hint, optional)
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        version = _version(distributions) or "version unknown"
        seen = f"{version}, but its import fails: {reason}"
        return Finding(name, False, seen, f"pip install --force-reinstall {distributions[0]}")
    return Finding(name, True, version_of(module, distributions), optional=optional)


def is_installed(name: str) -> bool:
    """Whether the top-level module `name` can be found, without importing it."""
    try:
        return util.find_spec(name) is not None
    except (ImportError, ValueError):  # ValueError: it is blocked in sys.modules
        return False


def version_of(module: ModuleType, distributions: Sequence[str]) -> str:
    """What a module says of itself, as those of Debian packages do; else its distribution."""
    own = getattr(module, "__version__", None)
    return own if isinstance(own, str) else _version(distributions) or "version unknown"


def _version(distributions: Sequence[str]) -> str | None:
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None
