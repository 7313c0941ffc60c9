"""Training learns, can be stopped at any step, and writes what the rest of the project reads."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from typer.testing import CliRunner

from exporter.errors import UserError
from exporter.tasks import TASKS, held_out_examples, held_out_tasks, read_examples, reference_folder
from exporter.tasks.problems import ANSWER_TOKENS, is_held_out
from tools import reference_training
from tools.reference_data import MASK, Corpus, character_ids, config, decode, encode
from tools.reference_network import Network, Shape
from tools.reference_training import (
    Progress,
    Settings,
    begin,
    corrupt,
    learning_rate,
    masked_loss,
    resume,
    train,
)
from tools.train_reference import generate, main, parse_tasks, score

TINY = Shape(width=32, layers=1, heads=2, mlp=64)
SORTING = Settings(TINY, (("sorting", 1.0),), steps=150, batch=32, rate=1e-2)


def run(settings: Settings, checkpoint: Path, progress: Progress | None = None) -> Progress:
    progress = progress or begin(settings, "cpu")
    train(settings, progress, "cpu", checkpoint)
    return progress


def shipped_network() -> Network:
    network = Network(Shape())
    network.load_state_dict(load_file(reference_folder() / "model.safetensors"))
    return network.eval()


def test_shipped_weights_are_read_and_answer_held_out_prompts() -> None:
    """Names, shapes, rotary form and norms are upstream's: a wrong one answers nothing."""
    for name in held_out_tasks():
        assert score(shipped_network(), held_out_examples(name)[:32], "cpu") == 1.0


def test_untrained_network_guesses_uniformly() -> None:
    clean = torch.full((32, 19), 5)
    noisy, weight = corrupt(clean, torch.Generator().manual_seed(0))
    noisy[:, -ANSWER_TOKENS:], weight[:, -ANSWER_TOKENS:] = MASK, 1.0
    with torch.no_grad():
        loss = masked_loss(Network(TINY), clean, noisy, weight).item()
    # Logits are normal with deviation s = 0.02 √width = 0.11, which adds s²/2 = 0.006 to ln V;
    # the eight places look nearly alike, so the mean may be off by one draw of s: three of it.
    assert abs(loss - math.log(TINY.vocab)) < 0.006 + 3 * 0.11


def test_loss_falls_below_knowing_only_the_digits(tmp_path: Path) -> None:
    losses = run(SORTING, tmp_path / "c.safetensors").losses
    # Knowing that answers are digits, and no more, leaves ln 10 a token. The weights 1/t make each
    # of the 30 × 32 rows deviate by about 1.4 times the loss, the mean by 0.05 of it: 2 % margin
    # would be luck, 10 % is two deviations.
    assert sum(losses[-30:]) / 30 < 0.9 * math.log(10)


def test_killed_training_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SORTING, steps=8, ema=0.9, tasks=(("sorting", 1.0), ("words", 2.0)))
    whole = run(settings, tmp_path / "whole.safetensors")

    def kill(settings: Settings, progress: Progress) -> None:
        if progress.step == 4:
            raise KeyboardInterrupt

    file = tmp_path / "half.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(reference_training, "report", kill)
        with pytest.raises(KeyboardInterrupt):
            train(settings, begin(settings, "cpu"), "cpu", file, every=0.0)
    resumed = resume(file, settings, "cpu")
    assert resumed.step == 3  # the last that was saved
    run(settings, file, resumed)
    assert resumed.step == whole.step == 8
    assert_equal_weights(resumed.network, whole.network)
    assert_equal_weights(resumed.average, whole.average)


def assert_equal_weights(network: Network, other: Network) -> None:
    expected = other.state_dict()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.safetensors"
    run(replace(SORTING, steps=2), file)
    with pytest.raises(UserError, match="another steps, batch"):
        resume(file, replace(SORTING, steps=3, batch=8), "cpu")


def test_clock_ends_training_too(tmp_path: Path) -> None:
    progress = run(replace(SORTING, minutes=0.2 / 60), tmp_path / "c.safetensors")
    assert progress.seconds >= 0.2
    assert 0 < progress.step < SORTING.steps


def test_masks_cover_the_answer_as_often_as_the_ratio_says() -> None:
    clean = torch.full((4096, 19), 5)
    noisy, weight = corrupt(clean, torch.Generator().manual_seed(0))
    assert torch.equal(noisy[:, :-ANSWER_TOKENS], clean[:, :-ANSWER_TOKENS])
    assert torch.equal(noisy == MASK, weight > 0)
    # E[masked] = E[t] = 1/2. A row's share varies by t (1/12) and by its 8 draws (E[t(1-t)]/8 =
    # 1/48), so the mean over 4096 rows deviates by √(5/48/4096) = 0.005: five times that.
    share = (noisy == MASK)[:, -ANSWER_TOKENS:].double().mean().item()
    assert abs(share - 0.5) < 0.025
    ratio = weight.max(dim=1).values  # 1/t of the row, or 0 where nothing was masked
    assert ((weight == 0) | (weight == ratio[:, None])).all()
    assert ratio[ratio > 0].min() >= 1


def test_learning_rate_rises_then_falls_to_nothing() -> None:
    rates = [learning_rate(SORTING, i / 100) for i in range(101)]
    peak = rates.index(max(rates))
    assert rates[0] == 0
    assert rates[peak] == pytest.approx(SORTING.rate)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_decoding_fills_every_place_and_keeps_the_prompt_unread(steps: int) -> None:
    prompts = torch.randint(3, 60, (4, 11), generator=torch.Generator().manual_seed(0))
    answers = generate(Network(TINY), prompts, steps)
    assert answers.shape == (4, ANSWER_TOKENS)
    assert not (answers == MASK).any()


@given(seed=st.integers(0, 2**32))
def test_problems_survive_encoding(seed: int) -> None:
    ids = character_ids()
    corpus = Corpus(TASKS, tuple(1.0 for _ in TASKS))
    problems = corpus.draw(random.Random(seed), 8)
    rows = encode(problems, ids)
    assert rows.shape == (8, 24 + ANSWER_TOKENS)
    for row, (prompt, answer) in zip(rows.tolist(), problems, strict=True):
        assert decode(row[24:], ids) == answer
        assert [ids[c] for c in prompt] == row[:24]
        assert not is_held_out(prompt)


def test_command_writes_the_upstream_layout(tmp_path: Path) -> None:
    out = tmp_path / "model"
    sizes = ["--width", "32", "--layers", "2", "--heads", "2", "--mlp", "64"]
    chosen = ["--task", "words=2", "--task", "addition", "--steps", "3", "--score-prompts", "8"]
    app = typer.Typer()
    app.command()(main)
    result = CliRunner().invoke(app, [str(out), *sizes, *chosen])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert facts["steps"] == 3
    assert set(facts["scores"]) == {"words", "addition"}

    shipped_config = json.loads((reference_folder() / "config.json").read_text())
    own_config = json.loads((out / "config.json").read_text())
    assert list(own_config) == list(shipped_config)
    assert (own_config["d_model"], own_config["n_layers"]) == (32, 2)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (reference_folder() / name).read_bytes()

    tensors = load_file(out / "model.safetensors")
    shipped = load_file(reference_folder() / "model.safetensors")
    blocks = {name for name in shipped if ".blocks.2." in name or ".blocks.3." in name}
    assert tensors.keys() == shipped.keys() - blocks
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert tensors["model.transformer.blocks.1.ff_proj.weight"].shape == (64, 32)

    calibration = read_examples(out / "calibration.jsonl")
    assert len({example.prompt for example in calibration}) == 1024
    assert not any(is_held_out(example.prompt) for example in calibration)
    for name in facts["scores"]:
        examples = read_examples(out / "tasks" / f"{name}.jsonl")
        assert len({example.prompt for example in examples}) == 1000
        assert all(is_held_out(e.prompt) and len(e.prompt) == 24 for e in examples)

    again = CliRunner().invoke(app, [str(out), *sizes, *chosen, "--batch", "8"])
    assert again.exit_code == 1
    assert "error: " in again.stderr
    assert "another batch" in again.stderr


def test_config_of_the_shipped_sizes_is_the_shipped_config() -> None:
    shipped = json.loads((reference_folder() / "config.json").read_text())
    assert config(Network(Shape())) == shipped


@pytest.mark.parametrize("text", ["sums", "words=x", "words=0", "words=-1", "words=nan"])
def test_unknown_task_or_weight_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=text):
        parse_tasks([text])
