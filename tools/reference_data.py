"""Prompts as token ids, and the folder that a trained network is written to."""

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from exporter.checkpoint import open_checkpoint
from exporter.family_table import LLADA, SDAR
from exporter.tasks import Example, Reference, Task, reference_folder
from exporter.tasks.problems import Problem
from tools.reference_network import NORM_EPS, ROPE_THETA, Network, Shape

EOS, MASK = 1, 2
FILLER = "\0"  # stands for <eos> behind a short answer
CALIBRATION_PROMPTS = 1024
HELD_OUT_PROMPTS = 1000  # of each task, or as many as there are
NAMES = {  # ours -> the network's, which are LLaDA's; it has no norms of queries and keys
    **LLADA.tensors,
    "q_norm": "model.transformer.blocks.{i}.q_norm.weight",
    "k_norm": "model.transformer.blocks.{i}.k_norm.weight",
}
PATIENCE = 20_000  # draws in a row that bring nothing new: there is no more


@dataclass(frozen=True)
class Corpus:
    """Tasks, each drawn as often as its weight says."""

    tasks: tuple[Task, ...]
    weights: tuple[float, ...]

    def draw(self, rng: random.Random, count: int) -> tuple[list[Problem], list[Task]]:
        """`count` training problems that are equally wide, and the task of each.

        A first task decides the widths; the rest of the batch is drawn from the tasks that share
        them. So over many batches every task gets its weight.
        """
        first = rng.choices(self.tasks, self.weights)[0]
        alike = {
            t: w for t, w in zip(self.tasks, self.weights, strict=True) if t.widths == first.widths
        }
        chosen = rng.choices(list(alike), list(alike.values()), k=count)
        return [one.sample_split(rng, held_out=False) for one in chosen], chosen

    def distinct(self, task: Task, held_out: bool, count: int, seed: int) -> list[Example]:
        """`count` different problems of `task` from one side of the split, or all there are."""
        rng = random.Random(f"{task.name}/{held_out}/{seed}")
        found: dict[str, str] = {}
        idle = 0
        while len(found) < count and idle < PATIENCE:
            prompt, answer = task.sample_split(rng, held_out)
            idle = idle + 1 if prompt in found else 0
            found.setdefault(prompt, answer)
        return [Example(task.name, p, a, task.answer_width, task.match) for p, a in found.items()]


def answer_width(task: Task, block: int | None) -> int:
    """Tokens of the answers to `task`; in blocks, counted from the prompt's start, whole ones."""
    return task.answer_width + (0 if block is None else -sum(task.widths) % block)


def character_ids(reference: Reference) -> dict[str, int]:
    """Token id of every character of a reference model's tokenizer."""
    tokenizer = Tokenizer.from_file(str(reference_folder(reference) / "tokenizer.json"))
    return {text: i for text, i in tokenizer.get_vocab().items() if len(text) == 1}


def encode(problems: Sequence[Problem], answer_width: int, ids: dict[str, int]) -> torch.Tensor:
    """Problems of one prompt width as ids (B, prompt width + answer_width), int64."""
    width = len(problems[0][0]) + answer_width
    text = "".join((prompt + answer).ljust(width, FILLER) for prompt, answer in problems)
    table = np.full(128, -1)  # the characters are ASCII; others, and a wrong width, raise
    table[[ord(c) for c in ids]] = list(ids.values())
    table[ord(FILLER)] = EOS
    return torch.from_numpy(table[np.frombuffer(text.encode("ascii"), np.uint8)].reshape(-1, width))


def decode(row: Sequence[int], ids: dict[str, int]) -> str:
    """The text of answer ids before the first <eos>; ids that are no character as `?`."""
    characters = {number: text for text, number in ids.items()}
    end = list(row).index(EOS) if EOS in row else len(row)
    return "".join(characters.get(number, "?") for number in row[:end])


def write_folder(
    folder: Path, network: Network, reference: Reference, corpus: Corpus, seed: int
) -> None:
    """The upstream layout, bf16, with tokenizer, calibration and held-out prompts."""
    (folder / "tasks").mkdir(parents=True, exist_ok=True)
    tensors = {name: t.to(torch.bfloat16).cpu() for name, t in upstream_tensors(network).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config(network), indent=1))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(reference_folder(reference) / name, folder / name)
    write_examples(folder / "calibration.jsonl", calibration(corpus, seed))
    for task in corpus.tasks:
        held_out = corpus.distinct(task, True, HELD_OUT_PROMPTS, seed)
        write_examples(folder / "tasks" / f"{task.name}.jsonl", held_out)


def upstream_tensors(network: Network) -> dict[str, torch.Tensor]:
    """The weights under the names of LLaDA, or of SDAR where attention is block-causal."""
    state = network.state_dict()
    if network.shape.block is None:
        return state
    return {
        SDAR.tensors[name].format(i=block): state[ours.format(i=block)]
        for name, ours in NAMES.items()
        for block in (range(network.shape.layers) if "{i}" in ours else [0])
        if ours.format(i=block) in state
    }


def calibration(corpus: Corpus, seed: int) -> list[Example]:
    """CALIBRATION_PROMPTS training prompts, shuffled, shared out evenly among the tasks."""
    share, more = divmod(CALIBRATION_PROMPTS, len(corpus.tasks))
    counts = [share + (place < more) for place in range(len(corpus.tasks))]
    parts = zip(corpus.tasks, counts, strict=True)
    examples = [e for task, count in parts for e in corpus.distinct(task, False, count, seed)]
    random.Random(seed).shuffle(examples)
    return examples


def config(network: Network) -> dict[str, object]:
    """The upstream config.json: that of SDAR where attention is block-causal, else of LLaDA."""
    return llada_config(network) if network.shape.block is None else sdar_config(network)


def llada_config(network: Network) -> dict[str, object]:
    """A shipped configuration with this network's sizes."""
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


def sdar_config(network: Network) -> dict[str, object]:
    """The keys that decide what SDAR computes."""
    shape = network.shape
    return {
        "architectures": list(SDAR.architectures),
        "model_type": SDAR.model_type,
        "attention_bias": False,
        "block_size": shape.block,
        "bos_token_id": EOS,
        "eos_token_id": EOS,
        "head_dim": shape.width // shape.heads,
        "hidden_act": "silu",
        "hidden_size": shape.width,
        "intermediate_size": shape.mlp,
        "mask_token_id": MASK,
        "max_position_embeddings": 512,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.heads,
        "pad_token_id": 0,
        "rms_norm_eps": NORM_EPS,
        "rope_scaling": None,
        "rope_theta": ROPE_THETA,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vocab_size": shape.vocab,
    }


def shipped_shape(reference: Reference) -> Shape:
    """The sizes of a shipped reference model."""
    spec = open_checkpoint(reference_folder(reference)).spec
    return Shape(
        spec.width, spec.layers, spec.heads, spec.mlp_width, spec.vocab_size, spec.block_length
    )


def write_examples(file: Path, examples: Sequence[Example]) -> None:
    """One JSON object a line, in the fields that read_examples() takes."""
    keys = ("task", "prompt", "answer", "gen_length", "match")
    lines = [json.dumps({key: getattr(example, key) for key in keys}) for example in examples]
    file.write_text("".join(line + "\n" for line in lines))
