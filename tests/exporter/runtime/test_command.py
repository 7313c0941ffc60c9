"""The command as a user runs it: a bundle alone, in its own process, without our packages."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exporter.runtime.command import main
from exporter.runtime.loop import decode
from exporter.runtime.task import make_canvas
from tests.tiny_bundle import DECODE, EOS, FACTS, MASK, Twin, manifest, write_bundle

Result = subprocess.CompletedProcess[str]
ALONE = """import runpy, sys
for name in ("exporter", "passes", "ort_ops", "targets", "trt_plugins", "dqexport", *{blocked!r}):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "bundle"
    write_bundle(folder)
    return folder


def alone(
    bundle: Path, *argv: str, stdin: str | None = None, blocked: list[str] | None = None
) -> Result:
    """Run BUNDLE/decode.py isolated from the environment, with packages blocked."""
    code = ALONE.format(blocked=blocked or [])
    return subprocess.run(
        [sys.executable, "-I", "-c", code, str(bundle / "decode.py"), *argv],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
    )


def test_json_of_one_prompt_is_what_the_loop_did(bundle: Path) -> None:
    run = alone(bundle, "--ids", "5,7,9", "--json", blocked=["torch", "onnx", "tokenizers"])
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    canvas, length, key_mask = make_canvas([[5, 7, 9]], DECODE.gen_length, FACTS)
    trace = [
        [step.index, position, token]
        for step in decode(Twin(), FACTS, DECODE, canvas, length, key_mask)
        for _, position, token in step.commits
    ]
    assert answer["ids"] == canvas[0].tolist()
    assert answer["trace"] == trace
    assert answer["text"] is None
    assert answer["forwards"] == len(trace) == answer["forwards"] + answer["skipped"]
    assert answer["sampler"] == DECODE.sampler
    assert answer["inexact_draws"] == 0
    assert answer["seconds"] > 0
    assert not run.stderr


def test_text_in_text_out(bundle: Path) -> None:
    streamed = alone(bundle, "--prompt", "hé")
    assert streamed.returncode == 0, streamed.stderr
    piped = alone(bundle, "--no-stream", stdin="hé")
    answer = json.loads(alone(bundle, "--prompt", "hé", "--json").stdout)
    assert streamed.stdout == piped.stdout == answer["text"] + "\n"
    assert "16 forwards" in streamed.stderr and "tokens/s" in streamed.stderr


def json_of(bundle: Path, capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main(bundle, [*argv, "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def lines_of(bundle: Path, capsys: pytest.CaptureFixture[str], *argv: str) -> list[dict[str, Any]]:
    assert main(bundle, [*argv, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("batch", ["1", "2", "3"])
def test_each_prompt_is_told_in_its_own_positions(
    bundle: Path, capsys: pytest.CaptureFixture[str], batch: str
) -> None:
    prompts = ("--ids", "5,7,9,11", "--ids", "5", "--prompt", "ab")
    results = lines_of(bundle, capsys, *prompts, "--batch", batch)
    for index, (result, length) in enumerate(zip(results, (4, 1, 2), strict=True)):
        assert result["index"] == index
        assert len(result["ids"]) == length + DECODE.gen_length
        assert sorted(p for _, p, _ in result["trace"]) == list(range(length, len(result["ids"])))
        assert all(result["ids"][p] == token for _, p, token in result["trace"])
        assert isinstance(result["text"], str)
        assert result["forwards"] == DECODE.gen_length
        assert result["tokens"] == DECODE.gen_length * result["prompts"]
    assert results[0]["ids"][:4] == [5, 7, 9, 11]
    sizes = {"1": [1, 1, 1], "2": [2, 2, 1], "3": [3, 3, 3]}
    assert [result["prompts"] for result in results] == sizes[batch]


def test_a_file_is_decoded_like_its_prompts(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        '{"prompt": "ab", "answer": "x"}\n\n{"ids": [5, 7], "gen_length": 8}\n{"ids": [9]}\n'
    )
    results = lines_of(bundle, capsys, "--file", str(file), "--batch", "2")
    assert [r["index"] for r in results] == [0, 2, 1]  # only equal lengths go together
    assert [len(r["ids"]) for r in results] == [18, 17, 10]
    alone = json_of(bundle, capsys, "--ids", "5,7", "--gen-length", "8")
    assert (results[2]["ids"], results[2]["trace"]) == (alone["ids"], alone["trace"])
    short = lines_of(bundle, capsys, "--file", str(file), "--gen-length", "8")
    assert [len(r["ids"]) for r in short] == [10, 10, 9]  # an option is for all


@pytest.mark.parametrize("options", [[], ["--no-stream"], ["--batch", "2"]])
def test_texts_of_several_prompts_are_kept_apart(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("ab\ncde\n")
    file = ("--file", str(tmp_path / "prompts.txt"))
    texts = [r["text"] for r in lines_of(bundle, capsys, *file, *options[-2:])]
    assert main(bundle, [*file, *options, "--stats"]) == 0
    out, err = capsys.readouterr()
    assert out == f"--- 1/2 ---\n{texts[0]}\n--- 2/2 ---\n{texts[1]}\n"
    assert err.startswith("prompts          2\n") and "tokens/s" in err


def test_nothing_is_decoded_where_one_line_is_bad(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.jsonl"
    for bad, says in (
        ('{"ids": [264]}', "id 264 is not in the vocabulary"),
        ('{"ids": [1], "gen_length": 99}', "more than the 64"),
        ('{"ids": [1], "gen_length": 12}', "not a multiple of block_length"),
        ('{"ids": [1}', "not JSON"),
    ):
        file.write_text('{"ids": [1]}\n' + bad + "\n")
        assert main(bundle, ["--file", str(file)]) == 1
        out, err = capsys.readouterr()
        assert not out
        assert err.startswith(f"error: {file}:2: ") and says in err


def test_commits_are_streamed_and_the_text_ends_them(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = json_of(bundle, capsys, "--prompt", "ab")
    assert main(bundle, ["--prompt", "ab", "--stream", "commits"]) == 0
    commits, _, text = capsys.readouterr().out.partition("\n\n")
    told = [[int(part) for part in line.split("\t")[:2]] for line in commits.splitlines()]
    assert told == [entry[:2] for entry in answer["trace"]]
    assert text == answer["text"] + "\n"


def test_watching_needs_a_terminal(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(bundle, ["--ids", "1", "--watch"]) == 1
    out, err = capsys.readouterr()
    assert not out
    assert "--watch draws on a terminal" in err and "hint: drop --watch" in err


def test_blanks_are_filled_and_shown_in_place(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = json_of(bundle, capsys, "--prompt", "a<mask>b<mask>", "--gen-length", "0")
    assert answer["new"] == []
    assert [p for _, p, _ in answer["trace"]] in ([1, 3], [3, 1])
    assert MASK not in answer["ids"]
    assert answer["text"][0] == "a"
    assert main(bundle, ["--prompt", "a<mask>b<mask>", "--gen-length", "0"]) == 0
    assert capsys.readouterr().out == answer["text"] + "\n"


def test_new_ends_with_the_end_of_text(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the token that comes first of all as its end of text, the answer is that token."""
    first = json_of(bundle, capsys, "--ids", "5,7,9", "--no-early-stop")["new"]
    assert len(first) == DECODE.gen_length
    for name in ("graphs", "tokenizer"):
        shutil.copytree(bundle / name, tmp_path / name)
    facts = manifest()
    facts["model"]["eos_id"] = first[3]
    (tmp_path / "manifest.json").write_text(json.dumps(facts))
    stopped = json_of(tmp_path, capsys, "--ids", "5,7,9")
    assert stopped["new"] == first[: first.index(first[3]) + 1]
    assert len(stopped["ids"]) == 3 + DECODE.gen_length
    full = json_of(tmp_path, capsys, "--ids", "5,7,9", "--no-early-stop")
    assert full["new"] == first


def test_every_setting_is_an_option(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(bundle, ["--help"]) == 0
    shown = capsys.readouterr().out
    for name in manifest()["decode"]:
        assert "--" + name.replace("_", "-") in shown
    assert "(default: 16)" in " ".join(shown.split())
    options = "--sampler entropy --steps 4 --temperature 0.5 --top-p 0.8 --seed 3 --eos-inf"
    answer = json_of(bundle, capsys, "--ids", "1", *options.split(), "--threads", "1")
    assert answer["forwards"] == 4
    assert answer["sampler"] == "entropy"
    assert EOS not in answer["ids"]
    short = json_of(bundle, capsys, "--ids", "1", "--gen-length", "4")
    assert len(short["new"]) <= 4  # the default block of 8 is cut to 4


def test_without_tokenizer_ids_come_out(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(bundle / "graphs", tmp_path / "graphs")
    shutil.copy(bundle / "manifest.json", tmp_path)
    new = json_of(bundle, capsys, "--ids", "5,7")["new"]
    assert main(tmp_path, ["--ids", "5,7"]) == 0
    assert capsys.readouterr().out == ",".join(map(str, new)) + "\n"


def no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def no_graph(folder: Path) -> None:
    (folder / "graphs" / "full.onnx").unlink()


def no_tokenizer(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer")


def nothing(folder: Path) -> None:
    pass


def change(*path: str, to: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        facts = manifest()
        entry = facts
        for name in path[:-1]:
            entry = entry[name]
        entry[path[-1]] = to
        (folder / "manifest.json").write_text(json.dumps(facts))

    return edit


@pytest.mark.parametrize(
    ("edit", "argv", "says", "hint"),
    [
        (no_manifest, "--ids 1", "no manifest.json", "dqexport build"),
        (no_graph, "--ids 1", "full.onnx is missing", "copy the whole bundle"),
        (no_tokenizer, "--prompt a", "no tokenizer.json", "--ids"),
        (change("format", to=2), "--ids 1", "format 2", "decode.py"),
        (change("model", "corruption", to="uniform"), "--ids 1", "uniform corruption", "LLaDA"),
        (change("decode", "colour", to=1), "--ids 1", "colour", "build"),
        (nothing, "--ids 1,264", "id 264 is not in the vocabulary of 264", "0 to 263"),
        (nothing, "--ids 1 --gen-length 64", "more than the 64", "--gen-length"),
        (nothing, "--ids 1 --gen-length 0", "nothing to decode", "<mask>"),
        (nothing, "--ids 1 --gen-length 20 --block-length 8", "not a multiple", "24"),
        (nothing, "--ids 1 --cache dual", "no cached graph", "--cache"),
        (nothing, "--ids 1 --provider quantum", "no provider quantum", "--provider"),
        (nothing, "--ids 1 --sampler entropy --cfg-scale 1", "no guided graph", "--sampler"),
    ],
)
def test_errors_come_with_a_hint_and_no_traceback(
    bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    edit: Callable[[Path], None],
    argv: str,
    says: str,
    hint: str,
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    edit(folder)
    assert main(folder, argv.split()) == 1
    out, err = capsys.readouterr()
    first, blank, last = err.splitlines()
    assert not out and not blank
    assert first.startswith("error: ") and says in first
    assert last.startswith("hint: ") and hint in last


@pytest.mark.parametrize(
    ("blocked", "argv", "hint"),
    [
        ("tokenizers", ["--prompt", "a"], "pip install tokenizers"),
        ("onnxruntime", ["--ids", "1"], "pip install onnxruntime"),
        ("jinja2", ["--prompt", "a"], "pip install jinja2"),
    ],
)
def test_a_missing_package_is_named(
    bundle: Path, tmp_path: Path, blocked: str, argv: list[str], hint: str
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    (folder / "tokenizer" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    run = alone(folder, *argv, blocked=[blocked])
    assert run.returncode == 1
    assert hint in run.stderr and "Traceback" not in run.stderr


@pytest.mark.parametrize(
    "argv",
    [
        ["--ids", "1,a"],
        ["--sampler", "best"],
        ["--threads", "0"],
        ["--batch", "0"],
        ["--json", "--stream", "text"],
        ["--json", "--watch"],
        ["--batch", "2", "--stream", "commits"],
        ["--batch", "2", "--watch"],
        ["--watch", "0.1", "--no-stream"],
        ["--watch", "-1"],
        ["--chat"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2(
    bundle: Path, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    assert main(bundle, [*argv, "--ids", "1"]) == 2
    assert "usage:" in capsys.readouterr().err


def test_nan_is_an_error(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np
    import onnx
    from onnx import numpy_helper

    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    path = folder / "graphs" / "full.onnx"
    model = onnx.load(path)
    head = next(i for i in model.graph.initializer if i.name == "head")
    values = numpy_helper.to_array(head) * np.float32(np.nan)
    head.CopyFrom(numpy_helper.from_array(values, "head"))
    onnx.save(model, path)
    assert main(folder, ["--ids", "1"]) == 1
    assert "NaN in forward 1" in capsys.readouterr().err
    assert main(folder, ["--ids", "1", "--verbose"]) == 1
    assert "Traceback" in capsys.readouterr().err
