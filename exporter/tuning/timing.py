"""How long an answer takes on this machine, one prompt at a time."""

import time
from collections.abc import Mapping, Sequence
from statistics import median

from exporter.evaluation.batches import Batch, Item
from exporter.evaluation.generation import decode_batch, open_for
from exporter.evaluation.subject import Subject
from exporter.progress import Progress


def time_answers(
    subject: Subject, contestants: Mapping[str, Sequence[Item]], rounds: int, progress: Progress
) -> dict[str, float]:
    """Seconds an answer of each contestant: the median over `rounds` of the mean over its items.

    Contestants take turns within a round, so that what else the machine does meets all of them.
    The first round, which also warms up, does not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    batches = {name: [Batch((item,)) for item in items] for name, items in contestants.items()}
    sessions = {name: open_for(subject, found) for name, found in batches.items()}
    with progress.stage("time", (rounds + 1) * len(contestants)) as step:
        for number in range(rounds + 1):
            for name, found in batches.items():
                start = time.perf_counter()
                for batch in found:
                    decode_batch(subject, sessions[name], batch, lambda: None)
                if number:
                    seconds[name].append((time.perf_counter() - start) / len(found))
                step()
    return {name: median(values) for name, values in seconds.items()}
