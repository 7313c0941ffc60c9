"""A bundle is put together in a draft, and its manifest appears last."""

import hashlib
import json
from pathlib import Path

import pytest

from exporter.emit import (
    MANIFEST,
    SEAL,
    copy_plugins,
    copy_tokenizer,
    list_files,
    publish,
    write_manifest,
)
from exporter.verify import check_seal, read_manifest
from tests.commands import content
from trt_plugins.build import source_digest, source_files


def make_draft(folder: Path) -> dict[str, bytes]:
    """A draft with a file of every kind."""
    files = {
        name: b"new"
        for name in ("manifest.json", "manifest.sha256", "zebra.txt", "decode.py",
                     "graphs/full.onnx", "runtime/loop.py", "tokenizer/tokenizer.json")
    }  # fmt: skip
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return files


def test_publishing_replaces_what_was_there(tmp_path: Path) -> None:
    files = make_draft(tmp_path / "draft")
    out = tmp_path / "b"
    make_draft(out)
    (out / "graphs" / "old.onnx").write_bytes(b"old")
    (out / "decode.py").write_bytes(b"old")
    publish(tmp_path / "draft", out)
    assert content(out) == files
    assert not list((tmp_path / "draft").iterdir())


def test_publishing_makes_the_folder(tmp_path: Path) -> None:
    files = make_draft(tmp_path / "draft")
    publish(tmp_path / "draft", tmp_path / "new" / "b")
    assert content(tmp_path / "new") == {f"b/{name}": data for name, data in files.items()}


@pytest.mark.parametrize("name", ["manifest.sha256", "zebra.txt", "decode.py"])
def test_the_manifest_goes_first_and_comes_last(tmp_path: Path, name: str) -> None:
    """Whichever file cannot be put into place, there is no manifest, neither new nor old."""
    make_draft(tmp_path / "draft")
    out = tmp_path / "b"
    (out / name / "in the way").mkdir(parents=True)
    (out / MANIFEST).write_text("old")
    with pytest.raises(IsADirectoryError, match=name):
        publish(tmp_path / "draft", out)
    assert not (out / MANIFEST).exists()
    assert (out / ".work").is_dir()  # the next build may go on here


def test_stages_in_the_bundle_survive_publishing(tmp_path: Path) -> None:
    out = tmp_path / "b"
    (out / ".work" / "calibrate-1").mkdir(parents=True)
    make_draft(out / ".work" / "draft")
    publish(out / ".work" / "draft", out)
    assert (out / ".work" / "calibrate-1").is_dir()


def test_files_are_listed_with_role_size_and_digest(quick_bundle: Path) -> None:
    files = list_files(quick_bundle)
    held = content(quick_bundle)
    assert [file.path for file in files] == sorted(held.keys() - {MANIFEST, SEAL})
    for file in files:
        assert file.bytes == len(held[file.path])
        assert file.sha256 == hashlib.sha256(held[file.path]).hexdigest()
    roles = {file.path: file.role for file in files}
    assert roles["graphs/full.onnx"] == "graph" and roles["graphs/weights.bin"] == "weights"
    assert roles["decode.py"] == roles["runtime/loop.py"] == "loop"
    assert roles["gate.safetensors"] == "reference"
    assert roles["report.html"] == "report" and roles["README.md"] == "readme"
    assert files == read_manifest(quick_bundle).files


def test_a_manifest_is_read_as_it_was_written(quick_bundle: Path, tmp_path: Path) -> None:
    manifest = read_manifest(quick_bundle)
    write_manifest(tmp_path, manifest)
    assert (tmp_path / MANIFEST).read_bytes() == (quick_bundle / MANIFEST).read_bytes()
    assert not check_seal(tmp_path)
    write_manifest(tmp_path, manifest.model_copy(update={"target": "cuda"}))
    assert read_manifest(tmp_path).target == "cuda"
    assert not check_seal(tmp_path)
    assert json.loads((tmp_path / MANIFEST).read_text())["format"] == 1


def test_only_tokenizer_files_are_copied(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "chat_template.jinja", "modeling_llada.py", "model.bin"):
        (tmp_path / name).write_text(name)
    (tmp_path / "draft").mkdir()
    copy_tokenizer(tmp_path, tmp_path / "draft")
    assert content(tmp_path / "draft") == {
        "tokenizer/tokenizer.json": b"tokenizer.json",
        "tokenizer/chat_template.jinja": b"chat_template.jinja",
    }


def test_plugins_are_copied_with_all_that_compiles_them(tmp_path: Path) -> None:
    """Files and digest are those that the program beside them finds again."""
    digest = copy_plugins(tmp_path)
    assert sorted(content(tmp_path / "plugins")) == source_files()
    assert source_digest(tmp_path / "plugins") == digest
    assert {file.role for file in list_files(tmp_path)} == {"plugin"}
