"""Figures of an evaluation in words: one table a part."""

from collections.abc import Iterable, Sequence

from exporter.evaluation.accuracy import Accuracy, Versus
from exporter.evaluation.evaluate import Evaluation
from exporter.evaluation.scoring import Likelihood, Mean
from exporter.evaluation.straying import Forced, Straying

Row = Sequence[str]
Range = tuple[float, float]


def render(found: Evaluation) -> str:
    """All parts, with an empty line between them."""
    parts = []
    if found.generation:
        parts.append(_generation(found.generation))
    if found.likelihood:
        parts.append(_likelihood(found.likelihood))
    if found.trajectory:
        parts.append(_trajectory(found.trajectory))
    return "\n\n".join(parts)


def _generation(rows: Sequence[Accuracy]) -> str:
    compared = any(row.versus for row in rows)
    head = ["task", "prompts", "right %", "95 %", "tokens", "calls", "tokens/call"]
    lines = [
        [
            row.task, str(row.prompts), _percent(row.accuracy), _percents(row.interval),
            str(row.tokens), str(row.forwards), f"{row.tokens / max(row.forwards, 1):.2f}",
            *(_versus(row.versus) if compared else ()),
        ]
        for row in rows
    ]  # fmt: skip
    return _aligned([[*head, *(VERSUS if compared else ())], *lines])


def _likelihood(rows: Sequence[Likelihood]) -> str:
    choices = any(row.accuracy is not None for row in rows)
    compared = any(row.per_answer_versus for row in rows)
    head = ["task", "questions", "nats/answer", "95 %", "nats/token", "95 %"]
    head += ["minus other", "95 %"] if compared else []
    head += ["right %", "95 %"] if choices else []
    head += VERSUS if choices and compared else []
    lines = [
        [
            row.task, str(row.questions), *_mean(row.per_answer), *_mean(row.per_token),
            *(_mean(row.per_answer_versus) if compared else ()),
            *((_percent(row.accuracy), _percents(row.interval)) if choices else ()),
            *(_versus(row.accuracy_versus) if choices and compared else ()),
        ]
        for row in rows
    ]  # fmt: skip
    return _aligned([head, *lines])


def _trajectory(found: Straying) -> str:
    low, high = found.exact_interval
    title = (
        f"against float, {found.prompts} prompts: equal answers {100 * found.exact_match:.1f} %"
        f" [{100 * low:.1f}, {100 * high:.1f}], equal tokens {100 * found.token_agreement:.2f} %,"
        f" first divergence at {100 * found.first_divergence:.1f} % of the calls"
    )
    parts = len(found.by_mask_ratio)
    names = [f"{1 - b / parts:g} … {1 - (b + 1) / parts:g}" for b in range(parts)]
    lines = [
        [name, str(part.positions), *_forced(part)]
        for name, part in zip(["all", *names], [found.forced, *found.by_mask_ratio], strict=True)
    ]
    head = ["masked", "positions", "equal arg-max %", "95 %", "regret", "KL"]
    return title + "\n" + _aligned([head, *lines])


def _forced(part: Forced) -> Row:
    numbers = ("–" if value is None else f"{value:.2g}" for value in (part.regret, part.kl))
    return [_percent(part.agreement), _percents(part.interval), *numbers]


VERSUS = ["minus other", "95 %", "gained", "lost", "McNemar p"]


def _versus(found: Versus | None) -> Row:
    if found is None:
        return [""] * len(VERSUS)
    counts = [str(found.gained), str(found.lost), f"{found.p:.3g}"]
    return [f"{100 * found.difference:+.2f}", _percents(found.interval), *counts]


def _mean(found: Mean | None) -> Row:
    if found is None:
        return ["", ""]
    ends = "–" if found.interval is None else " … ".join(f"{end:.4g}" for end in found.interval)
    return [f"{found.mean:.4g}", ends]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f}"


def _percents(ends: Range | None) -> str:
    return "–" if ends is None else " … ".join(f"{100 * end:.2f}" for end in ends)


def _aligned(rows: Iterable[Row]) -> str:
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
    return "\n".join(lines)
