"""Python packages that are there, are not, or are broken."""

from pathlib import Path

import pytest

from exporter.finding import Finding, is_installed, package


def test_a_package_that_is_not_there() -> None:
    hint = "pip install no-such-wheel"
    expected = Finding("no_such_module", False, "not installed", hint, optional=True)
    assert package("no_such_module", ("no-such-wheel",), optional=True) == expected
    assert not is_installed("no_such_module")


def test_a_package_whose_import_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_wheel.py").write_text("raise OSError('libfoo.so.3: no such file')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    finding = package("broken_wheel", ("broken-wheel",), optional=False)
    assert not finding.ok
    assert finding.seen == "version unknown, but its import fails: libfoo.so.3: no such file"


def test_a_module_without_a_distribution_tells_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As TensorRT of a Debian package may be."""
    (tmp_path / "from_debian.py").write_text("__version__ = '10.3.0'\n")
    (tmp_path / "silent.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert package("from_debian", ("from-debian",), optional=True).seen == "10.3.0"
    assert package("silent", ("silent-wheel",), optional=True).seen == "version unknown"
