"""The model `dqexport` of lm-evaluation-harness: a bundle or a checkpoint behind its interface.

    python -m exporter.lm_eval_model run --model dqexport --model_args subject=BUNDLE --tasks gsm8k

is `lm_eval` with this model known, and with the few-shot count of presets.py where the command
gives none. `--model_args` takes `subject` (a folder, or a name as in `dqexport eval`), every
decoding setting by its name in Settings, `mc_num`, `mc_batch`, `provider`, `threads` and
`accuracy_level`. What is left out comes from presets.py by task, then from the subject; of a task's
own generation arguments only `until` is heeded.

Say `--batch_size auto` to decode as many prompts together as memory takes; the harness's own
default is one.

Likelihoods are Monte-Carlo estimates (likelihood.py). Whether an answer would have been decoded
greedily is not found out, and said to be False.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

import torch
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from exporter.decoding import most_calls
from exporter.errors import UserError
from exporter.evaluation.batches import Item, make_batches
from exporter.evaluation.generation import decode_batch, open_for
from exporter.evaluation.inputs import monte_carlo, one_kind_of_error
from exporter.evaluation.items import check_ids, check_length, settings_for
from exporter.evaluation.likelihood import MonteCarlo, log_likelihood
from exporter.evaluation.presets import Preset, preset
from exporter.evaluation.scoring import opens_logits
from exporter.evaluation.subject import Hardware, open_subject
from exporter.progress import TerminalProgress
from exporter.runtime.settings import Settings
from exporter.tasks import Example
from exporter.team import device_of

SETTINGS = {one.name for one in fields(Settings)}
HARDWARE = {"provider", "threads", "accuracy_level"}
OURS = {"mc_num", "mc_batch"}


@register_model("dqexport")
class DqExport(LM):  # type: ignore[misc]  # lm_eval carries no types
    """One subject; the head of this file tells its arguments."""

    def __init__(
        self,
        subject: str = "reference",
        device: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,  # the harness gives it; no size is tried out here
        **given: Any,
    ) -> None:
        super().__init__()
        known = SETTINGS | HARDWARE | OURS
        if unknown := sorted(given.keys() - known):
            raise UserError(
                f"Unknown model argument {unknown[0]!r}",
                f"Known: subject, {', '.join(sorted(known))}",
            )
        # the harness says cuda where nobody said anything
        device = device_of(device) if device and torch.cuda.is_available() else "cpu"
        hardware = Hardware(device, **{k: v for k, v in given.items() if k in HARDWARE})
        self._given, self._progress = given, TerminalProgress()
        with one_kind_of_error():
            self._subject = open_subject(subject, hardware, self._progress)
        if self._subject.tokenizer is None:
            raise UserError(f"`{subject}` has no tokenizer", "The harness speaks in text: add one")
        self._tokenizer = self._subject.tokenizer
        # `auto`: as many as memory takes
        self._rows = int(batch_size) if batch_size and batch_size != "auto" else None
        self._chat = False

    @property
    def tokenizer_name(self) -> str:
        """For the names of cached requests."""
        return self._subject.name

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The message itself: it is put into the subject's template when it is encoded."""
        if len(chat_history) != 1 or not add_generation_prompt:
            raise UserError(
                f"The chat template is made for one message and its answer, not for"
                f" {len(chat_history)} messages or an answer that is begun",
                "Pass --fewshot_as_multiturn false, no --system_instruction, and no gen_prefix",
            )
        self._chat = True
        return chat_history[0]["content"]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Decoded answers, each cut before the first of its stop strings."""
        with one_kind_of_error():
            items = [self._item(index, request) for index, request in enumerate(requests)]
            texts = [""] * len(items)
            batches = make_batches(items, self._subject.facts.vocab_size, self._rows)
            session = open_for(self._subject, batches)
            calls = sum(most_calls(batch.settings) for batch in batches)
            with self._progress.stage("decode", calls) as step:
                for batch in batches:
                    found = decode_batch(self._subject, session, batch, step)
                    for item, answer in zip(batch.items, found, strict=True):
                        texts[item.index] = answer.text
        return [_cut(text, r.args[1].get("until")) for text, r in zip(texts, requests, strict=True)]

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log likelihoods in nats; answers to one prompt are masked alike."""
        pairs = [self._pair(*request.args) for request in requests]
        return [(value, False) for value in self._score(requests, pairs)]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log likelihood of whole texts in nats, in windows that know nothing of each other."""
        size = self._subject.facts.max_length
        found = []
        for request in requests:
            ids = self._encode(request.args[0])
            parts = [((), ids[i : i + size]) for i in range(0, len(ids), size)]
            found.append(sum(self._score([request] * len(parts), parts)))
        return found

    def _item(self, index: int, request: Instance) -> Item:
        task = request.task_name or ""
        usual = asdict(preset(task) or Preset())
        named = {k: v for k, v in usual.items() if k in SETTINGS and v is not None}
        given = named | {k: v for k, v in self._given.items() if k in SETTINGS}
        settings = settings_for(self._subject.settings, given, None)
        ids = check_ids(self._subject, task, self._encode(request.args[0]))
        check_length(self._subject, task, len(ids), settings.gen_length)
        return Item(index, Example(task), ids, settings)

    def _encode(self, text: str) -> tuple[int, ...]:
        if self._chat and self._subject.text is not None:
            return tuple(self._subject.text.encode(text, self._subject.facts.mask_id, chat=True))
        return tuple(self._tokenizer.encode(text).ids)

    def _pair(self, context: str, continuation: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids of both; spaces between them go to the second, as the harness has it."""
        if self._chat:
            ids = self._tokenizer.encode(continuation, add_special_tokens=False).ids
            return self._encode(context), tuple(ids)
        bare = context.rstrip()
        continuation, prompt = context[len(bare) :] + continuation, self._encode(bare)
        return prompt, self._encode(bare + continuation)[len(prompt) :]

    def _score(
        self, requests: Sequence[Instance], pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> list[float]:
        subject, found = self._subject, []
        logits = opens_logits(subject)()
        with self._progress.stage("likelihood", len(pairs)) as step:
            for request, (prompt, answer) in zip(requests, pairs, strict=True):
                task = request.task_name or ""
                check_length(subject, task, len(prompt), len(answer))
                how, index = self._monte_carlo(task), request.doc_id or 0
                estimate = log_likelihood(logits, subject.facts.mask_id, prompt, answer, how, index)
                found.append(estimate.log_likelihood)
                step()
        return found

    def _monte_carlo(self, task: str) -> MonteCarlo:
        draws = self._given.get("mc_num") or (preset(task) or Preset()).draws or MonteCarlo.draws
        batch = self._given.get("mc_batch") or MonteCarlo.batch
        return monte_carlo(
            draws, batch, self._given.get("seed", 0), self._given.get("cfg_scale", 0.0)
        )


def _cut(text: str, until: str | Sequence[str] | None) -> str:
    for stop in [until] if isinstance(until, str) else until or []:
        text = text.split(stop)[0] if stop else text
    return text


def with_few_shot(argv: Sequence[str]) -> list[str]:
    """`argv` of lm_eval, with the few-shot count that all of its tasks have in presets.py.

    Unchanged where it has a count, or where a task is not in there, or where counts differ.
    """
    if "--tasks" not in argv or any(a.split("=")[0] in ("--num_fewshot", "-f") for a in argv):
        return list(argv)
    names = []
    for argument in argv[list(argv).index("--tasks") + 1 :]:
        if argument.startswith("-"):
            break
        names += argument.split(",")
    counts = {found and found.few_shot for found in map(preset, names)}
    known = len(counts) == 1 and None not in counts
    return [*argv, "--num_fewshot", str(counts.pop())] if known else list(argv)


def main() -> None:
    """Entry point: lm_eval, with errors in two lines."""
    sys.argv[1:] = with_few_shot(sys.argv[1:])
    try:
        cli_evaluate()
    except UserError as error:
        print(f"error: {error}\n\nhint: {error.hint}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
