"""Masked-diffusion training that can be stopped and resumed without a trace.

Objective (arXiv 2502.09992, equation 6): l uniform in 1 … L for a row, l of the L answer tokens
masked, cross entropy of the masked tokens times L / l, divided by L. Its mean is that of a random
ratio t per token and weights 1/t (equation 5), but no weight is above L, so gradients are steadier.
It bounds the negative log-likelihood of an answer token; a uniform guess gives ln V.
"""

import copy
import json
import math
import os
import random
import sys
import time
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from exporter.checkpoint import Checkpoint
from exporter.errors import UserError
from exporter.tasks import Reference, task
from tools.reference_data import NAMES, Corpus, answer_width, character_ids, encode
from tools.reference_masking import corrupt, corrupt_block, places
from tools.reference_network import NORM_EPS, ROPE_THETA, Network, Shape
from tools.reference_targets import targets

BETAS, WEIGHT_DECAY, LARGEST_GRADIENT = (0.9, 0.98), 0.01, 1.0
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Settings:
    """Everything that decides the trained weights; a checkpoint goes on under equal ones only."""

    shape: Shape
    tasks: tuple[tuple[str, float], ...]  # name, weight
    reference: Reference = "one-step"  # whose tokenizer
    start: str = ""  # digest of the checkpoint that the training began from; empty: random weights
    steps: int = 6000
    minutes: float | None = None  # where given, the schedule follows the clock instead of steps
    batch: int = 64
    rate: float = 2e-3  # the highest learning rate
    warm_up: float = 0.03  # of the training, linear; then cosine down to 0
    ema: float = 0.0  # decay of the averaged weights that are kept in the end; 0: the last ones
    surest: float = 0.0  # share of rows that show the tokens of which the network is surest
    bf16: bool = False  # matmuls by autocast
    seed: int = 0

    def corpus(self) -> Corpus:
        names, weights = zip(*self.tasks, strict=True)
        return Corpus(tuple(task(name) for name in names), weights)


@dataclass
class Progress:
    """A training under way."""

    network: Network
    average: Network  # exponential moving average; the network itself where there is none
    optimizer: torch.optim.AdamW
    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)  # of this run, one a step

    def done(self, settings: Settings) -> float:
        """Share of the training that is behind, 0 to 1 and over."""
        if settings.minutes is None:
            return self.step / settings.steps if settings.steps else 1.0
        return self.seconds / (60 * settings.minutes)


def begin(settings: Settings, device: str, start: Checkpoint | None = None) -> Progress:
    """A training at step 0, from random weights or from those of `start`."""
    network = Network(settings.shape, settings.seed).to(device)
    if start is not None:
        read_weights(network, start)
    average = network
    if settings.ema:
        average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.AdamW(network.parameters(), betas=BETAS, weight_decay=WEIGHT_DECAY)
    return Progress(network, average, optimizer)


def read_weights(network: Network, checkpoint: Checkpoint) -> None:
    """Takes the weights of `checkpoint`; UserError where it is not a model of these sizes.

    Norms of queries and keys that it does not have stay as they are.
    """
    spec = checkpoint.spec
    sizes = spec.width, spec.layers, spec.heads, spec.mlp_width, spec.vocab_size, spec.kv_heads
    found = *sizes, spec.rope_theta, spec.norm_eps
    *shape, _ = astuple(network.shape)  # weights of either attention will do to begin from
    wanted = *shape, network.shape.heads, ROPE_THETA, NORM_EPS
    tensors = {}
    for key, entry in checkpoint.entries.items():
        block, _, name = key.rpartition(".")
        tensors[NAMES.get(name, name).format(i=block)] = entry
    lacking = network.state_dict().keys() - tensors.keys()
    if (
        found != wanted
        or tensors.keys() - network.state_dict().keys()
        or not all(name.endswith(("q_norm.weight", "k_norm.weight")) for name in lacking)
    ):
        raise UserError(
            f"`{checkpoint.folder}` is of family {checkpoint.family.name} and sizes {found}, "
            f"training of family {'llada' if network.shape.block is None else 'sdar'} and sizes "
            f"{wanted}",
            "Give a checkpoint of the same layout and sizes",
        )
    network.load_state_dict({n: entry.read() for n, entry in tensors.items()}, strict=False)


def train(
    settings: Settings, progress: Progress, device: str, checkpoint: Path, every: float = 60.0
) -> None:
    """Trains until done; writes `checkpoint` every so many seconds and at the end."""
    corpus, ids = settings.corpus(), character_ids(settings.reference)
    saved = time.monotonic()
    while progress.done(settings) < 1:
        start = time.monotonic()
        # Seeded by the step: a resumed training draws what an uninterrupted one draws.
        rng = random.Random(f"{settings.seed}/{progress.step}")
        generator = torch.Generator().manual_seed(rng.getrandbits(63))
        problems, tasks = corpus.draw(rng, settings.batch)
        width, block = answer_width(tasks[0], settings.shape.block), settings.shape.block
        clean = encode(problems, width, ids)
        if block is None:
            hidden_first = places(
                progress.network, clean.to(device), width, settings.surest, settings.bf16, generator
            )
            noisy, weight = corrupt(clean, hidden_first, generator)
        else:
            noisy, weight = corrupt_block(clean, width, block, generator)
        wanted = targets(tasks, problems, clean, noisy, ids, settings.shape.vocab)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=settings.bf16):
            batch = (t.to(device) for t in (wanted, noisy, weight))
            loss = masked_loss(progress.network, width, *batch)
        update(settings, progress, loss)
        progress.losses.append(loss.item())
        progress.step += 1
        progress.seconds += time.monotonic() - start
        if time.monotonic() - saved > every:
            report(settings, progress)
            save(checkpoint, settings, progress)
            saved = time.monotonic()
    if progress.step:  # before the first there is nothing to go on from
        save(checkpoint, settings, progress)


def masked_loss(
    network: Network, width: int, wanted: torch.Tensor, noisy: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """The objective of the module's docstring, in nats a token of answers `width` tokens long."""
    surprise = -network(noisy).float().log_softmax(-1)
    entropy = (surprise * wanted).sum(-1)  # (B, T)
    loss: torch.Tensor = (entropy * weight).sum() / (len(noisy) * width)
    return loss


def learning_rate(settings: Settings, done: float) -> float:
    """Linear from 0 over `warm_up`, then half a cosine down to 0."""
    if done < settings.warm_up:
        return settings.rate * done / settings.warm_up
    rest = (done - settings.warm_up) / (1 - settings.warm_up)
    return settings.rate * (1 + math.cos(math.pi * min(rest, 1))) / 2


def update(settings: Settings, progress: Progress, loss: torch.Tensor) -> None:
    for group in progress.optimizer.param_groups:
        group["lr"] = learning_rate(settings, progress.done(settings))
    progress.optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(progress.network.parameters(), LARGEST_GRADIENT)
    progress.optimizer.step()
    if settings.ema:
        # Early on a plain mean of what has been: the start must not weigh for long.
        keep = min(settings.ema, progress.step / (progress.step + 1))
        pairs = zip(progress.average.parameters(), progress.network.parameters(), strict=True)
        with torch.no_grad():
            for kept, new in pairs:
                kept.lerp_(new, 1 - keep)


def report(settings: Settings, progress: Progress) -> None:
    recent = progress.losses[-100:]
    sys.stderr.write(
        f"step {progress.step}  {progress.done(settings):.1%}  {progress.seconds:.0f} s  "
        f"loss {sum(recent) / len(recent):.4f}\n"
    )


def save(file: Path, settings: Settings, progress: Progress) -> None:
    """One safetensors file with weights, averages, moments of Adam and, as metadata, the rest."""
    tensors = {f"network.{name}": t for name, t in progress.network.state_dict().items()}
    if settings.ema:
        tensors |= {f"average.{name}": t for name, t in progress.average.state_dict().items()}
    for name, weight in progress.network.named_parameters():
        for moment in MOMENTS:
            tensors[f"{moment}.{name}"] = progress.optimizer.state[weight][moment]
    rest = {"settings": as_json(settings), "step": progress.step, "seconds": progress.seconds}
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(file.name + ".partial")
    save_file(tensors, draft, metadata={"training": json.dumps(rest)})
    os.replace(draft, file)


def resume(file: Path, settings: Settings, device: str) -> Progress:
    """The training that save() wrote; UserError where it was under other settings."""
    progress = begin(settings, device)
    with safe_open(file, framework="pt", device=device) as stream:
        rest = json.loads(stream.metadata()["training"])
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    if rest["settings"] != as_json(settings):
        other = [k for k, v in as_json(settings).items() if rest["settings"].get(k) != v]
        hint = "Give the settings of then, or another folder"
        raise UserError(f"`{file}` was written with another {', '.join(other)}", hint)
    progress.step, progress.seconds = rest["step"], rest["seconds"]
    progress.network.load_state_dict(_below("network", tensors))
    if settings.ema:
        progress.average.load_state_dict(_below("average", tensors))
    moments = [_below(moment, tensors) for moment in MOMENTS]
    for name, weight in progress.network.named_parameters():
        state = {moment: kept[name] for moment, kept in zip(MOMENTS, moments, strict=True)}
        progress.optimizer.state[weight] = {"step": torch.tensor(float(progress.step)), **state}
    return progress


def _below(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    start = f"{prefix}."
    return {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}


def as_json(settings: Settings) -> dict[str, object]:
    """Settings as JSON reads them back (tuples become lists)."""
    values: dict[str, object] = json.loads(json.dumps(asdict(settings)))
    return values
