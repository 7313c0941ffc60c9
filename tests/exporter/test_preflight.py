"""What is refused before any work, and what is let through."""

from pathlib import Path

import pytest

import targets
from exporter.errors import UserError
from exporter.operator_use import operator_use
from exporter.preflight import check_accuracy, check_lengths, check_output, load_target
from exporter.prompts import Prompts
from exporter.runtime.settings import Settings


@pytest.mark.parametrize("name", targets.names())
def test_every_target_is_served(name: str) -> None:
    assert load_target(name) == targets.load(name)


@pytest.mark.parametrize(
    ("typed", "close"), [("jetson-oron", "jetson-orin"), ("cudo", "cuda"), ("rtx40", "rtx-40")]
)
def test_a_mistyped_target_is_guessed(typed: str, close: str) -> None:
    with pytest.raises(UserError, match=typed) as refused:
        load_target(typed)
    guess = str(refused.value).partition("did you mean ")[2].partition("?")[0]
    assert close in guess.split(" or ")
    assert "dqexport targets" in refused.value.hint


@pytest.mark.parametrize(("longest", "fits"), [(1, True), (48, True), (49, False), (500, False)])
def test_prompt_and_answer_fit_into_the_canvas_exactly(longest: int, fits: bool) -> None:
    settings = Settings(gen_length=16, block_length=16)
    prompts = Prompts(((1,), (2,) * longest), (None, None), ((3,),), "made up")
    if fits:
        check_lengths(prompts, settings, 64)
        return
    with pytest.raises(UserError, match=f"{longest} tokens.* 16 .* 64 tokens"):
        check_lengths(prompts, settings, 64)


def test_answers_of_their_own_length_are_counted_so() -> None:
    settings = Settings(gen_length=16, block_length=16)
    check_lengths(Prompts(((1,) * 30,), (34,), ((3,),), "made up"), settings, 64)
    with pytest.raises(UserError, match=r"30 tokens.* 35 .* 64 tokens"):
        check_lengths(Prompts(((1,) * 30,), (35,), ((3,),), "made up"), settings, 64)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("held", [(), (".work/",), (".work/", "graphs/"), ("file",), ("folder/",)])
def test_only_new_empty_and_our_folders_are_taken(
    tmp_path: Path, held: tuple[str, ...], force: bool
) -> None:
    out = tmp_path / "b"
    check_output(out, force)
    out.mkdir()
    for name in held:
        (out / name).mkdir() if name.endswith("/") else (out / name).touch()
    if not held or ".work/" in held:
        check_output(out, force)
        return
    with pytest.raises(UserError, match="is not empty and holds no bundle"):
        check_output(out, force)


def test_a_bundle_is_replaced_only_by_force(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").touch()
    check_output(tmp_path, force=True)
    with pytest.raises(UserError, match="holds a bundle already"):
        check_output(tmp_path, force=False)
    with pytest.raises(UserError, match="is a file"):
        check_output(tmp_path / "manifest.json", force=True)


@pytest.mark.parametrize(
    ("name", "operators", "level", "hint"),
    [
        ("cpu", False, 1, None),
        ("cuda", False, 4, None),
        ("jetson-orin", True, 4, None),
        ("jetson-orin", False, 0, None),
        ("jetson-orin", False, 4, "Leave --no-operators out"),
        ("rtx-40", True, 2, "Use --accuracy-level 4"),
    ],
)
def test_a_level_that_would_change_nothing_is_refused(
    name: str, operators: bool, level: int, hint: str | None
) -> None:
    target = targets.load(name)
    use = operator_use(target, operators, level)
    if hint is None:
        check_accuracy(target, use, level)
        return
    with pytest.raises(UserError, match=f"`{name}`.* --accuracy-level is {level}") as refused:
        check_accuracy(target, use, level)
    assert hint in refused.value.hint
