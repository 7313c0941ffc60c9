"""Who may import whom, and what an import must not cost."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT: dict[str, set[str]] = {
    "targets": set(),
    "ort_ops": set(),
    "passes": {"ort_ops"},
    "trt_plugins": {"ort_ops"},
    "exporter": {"targets", "ort_ops", "passes", "trt_plugins"},
    "tools": {"targets", "ort_ops", "passes", "trt_plugins", "exporter"},
    "tests": {"targets", "ort_ops", "passes", "trt_plugins", "exporter", "tools", "dqexport"},
}
OURS = {*MAY_IMPORT, "dqexport"}
RUNTIME = ROOT / "exporter" / "runtime"
RUNTIME_NEEDS = {"numpy"}  # what the loop imports when it starts
RUNTIME_TAKES = {"onnxruntime", "tokenizers", "jinja2"}  # what it imports when it is used
HEAVY = {"torch", "onnx", "onnx_ir", "onnxruntime", "numpy", "tokenizers", "pydantic", "jinja2"}


def sources(folder: Path) -> list[Path]:
    found = sorted(folder.rglob("*.py"))
    assert found, f"{folder} holds no source"
    return found


def imported(tree: ast.AST) -> set[str]:
    """Top-level names of the absolute imports anywhere below `tree`."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when a module is imported; those for type checkers do not."""
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_point_down(folder: str) -> None:
    banned = OURS - MAY_IMPORT[folder] - {folder}
    for path in sources(ROOT / folder):
        wrong = imported(ast.parse(path.read_text())) & banned
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_the_scan_finds_a_wrong_import() -> None:
    text = "def f():\n    from exporter.graph import build_graph\nimport targets as t\n"
    assert imported(ast.parse(text)) == {"exporter", "targets"}


@pytest.mark.parametrize("path", sources(RUNTIME), ids=lambda path: path.name)
def test_the_loop_stands_alone(path: Path) -> None:
    """It is copied under another name: it knows its own folder, numpy, and optional packages."""
    tree = ast.parse(path.read_text())
    allowed = sys.stdlib_module_names | RUNTIME_NEEDS | RUNTIME_TAKES
    assert imported(tree) <= allowed
    relative = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level]
    assert all(node.level == 1 for node in relative), "it reaches out of its folder"
    first = {name for node in at_import(tree.body) for name in imported(node)}
    assert not first & RUNTIME_TAKES, f"{path.name} imports {first & RUNTIME_TAKES} when loaded"


def loaded_by(statement: str) -> set[str]:
    """Top-level modules in memory after `statement` in a fresh interpreter."""
    code = f"import sys; {statement}; print(*sorted({{m.partition('.')[0] for m in sys.modules}}))"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(found.stdout.split())


def test_the_command_line_starts_light() -> None:
    """`dqexport --help` does not wait for torch; nor does an error of usage."""
    found = loaded_by("import exporter.cli")
    assert "typer" in found
    assert not found & HEAVY


def test_the_loop_starts_without_its_optional_packages() -> None:
    found = loaded_by("import exporter.runtime.command")
    assert "numpy" in found
    assert not found & (HEAVY - {"numpy"})


@pytest.mark.parametrize("package", ["targets", "ort_ops", "passes", "trt_plugins", "exporter"])
def test_importing_a_package_imports_no_other_of_ours(package: str) -> None:
    assert loaded_by(f"import {package}") & OURS == {package}
