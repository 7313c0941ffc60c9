"""Prompts as token ids, and the folder that a trained network is written to."""

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from exporter.tasks import Example, Task, reference_folder
from exporter.tasks.problems import ANSWER_TOKENS, Problem, fill
from tools.reference_network import NORM_EPS, ROPE_THETA, Network

EOS, MASK = 1, 2
CALIBRATION_PROMPTS = 1024
HELD_OUT_PROMPTS = 1000  # of each task


@dataclass(frozen=True)
class Corpus:
    """Tasks that share one prompt width, each drawn as often as its weight says."""

    tasks: tuple[Task, ...]
    weights: tuple[float, ...]

    @property
    def prompt_width(self) -> int:
        return max(task.prompt_width for task in self.tasks)

    def draw(self, rng: random.Random, count: int) -> list[Problem]:
        """`count` training problems, never held-out ones."""
        chosen = rng.choices(self.tasks, self.weights, k=count)
        return [self._widen(task.sample_split(rng, held_out=False)) for task in chosen]

    def distinct(self, task: Task, held_out: bool, count: int, seed: int) -> list[Example]:
        """`count` different problems of `task` from one side of the split."""
        rng = random.Random(f"{task.name}/{held_out}/{seed}")
        found: dict[str, str] = {}
        while len(found) < count:
            prompt, answer = self._widen(task.sample_split(rng, held_out))
            found[prompt] = answer
        return [Example(task.name, p, a, ANSWER_TOKENS, "exact") for p, a in found.items()]

    def _widen(self, problem: Problem) -> Problem:
        return fill(problem[0], self.prompt_width), problem[1]


def character_ids() -> dict[str, int]:
    """Token id of every character of the reference tokenizer."""
    tokenizer = Tokenizer.from_file(str(reference_folder() / "tokenizer.json"))
    return {text: i for text, i in tokenizer.get_vocab().items() if len(text) == 1}


def encode(problems: Sequence[Problem], ids: dict[str, int]) -> torch.Tensor:
    """Problems of one prompt width as ids (B, prompt width + ANSWER_TOKENS), int64."""
    rows = [
        [ids[c] for c in prompt + answer] + [EOS] * (ANSWER_TOKENS - len(answer))
        for prompt, answer in problems
    ]
    return torch.tensor(rows)


def decode(row: Sequence[int], ids: dict[str, int]) -> str:
    """The text of answer ids before the first <eos>; ids that are no character as `?`."""
    characters = {number: text for text, number in ids.items()}
    end = list(row).index(EOS) if EOS in row else len(row)
    return "".join(characters.get(number, "?") for number in row[:end])


def write_folder(folder: Path, network: Network, corpus: Corpus, seed: int) -> None:
    """The upstream LLaDA layout, bf16, with tokenizer, calibration and held-out prompts."""
    (folder / "tasks").mkdir(parents=True, exist_ok=True)
    tensors = {name: t.to(torch.bfloat16).cpu() for name, t in network.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config(network), indent=1))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(reference_folder() / name, folder / name)
    share = CALIBRATION_PROMPTS // len(corpus.tasks)
    training = [e for t in corpus.tasks for e in corpus.distinct(t, False, share, seed)]
    random.Random(seed).shuffle(training)
    write_examples(folder / "calibration.jsonl", training)
    for task in corpus.tasks:
        held_out = corpus.distinct(task, True, HELD_OUT_PROMPTS, seed)
        write_examples(folder / "tasks" / f"{task.name}.jsonl", held_out)


def config(network: Network) -> dict[str, object]:
    """Upstream LLaDA's config.json: the shipped one with this network's sizes."""
    shipped: dict[str, object] = json.loads((reference_folder() / "config.json").read_text())
    shape = network.shape
    own = {
        "d_model": shape.width,
        "n_layers": shape.layers,
        "n_heads": shape.heads,
        "n_kv_heads": shape.heads,
        "mlp_hidden_size": shape.mlp,
        "mlp_ratio": shape.mlp // shape.width,
        "vocab_size": shape.vocab,
        "embedding_size": shape.vocab,
        "rope_theta": ROPE_THETA,
        "rms_norm_eps": NORM_EPS,
        "eos_token_id": EOS,
        "mask_token_id": MASK,
    }
    return {key: own.get(key, value) for key, value in shipped.items()}


def write_examples(file: Path, examples: Sequence[Example]) -> None:
    """One JSON object a line, in the fields that read_examples() takes."""
    keys = ("task", "prompt", "answer", "gen_length", "match")
    lines = [json.dumps({key: getattr(example, key) for key in keys}) for example in examples]
    file.write_text("".join(line + "\n" for line in lines))
