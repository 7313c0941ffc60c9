"""An ablation as Markdown, CSV and a plot."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from exporter.ablation.ablate import Trial
from exporter.ablation.summary import Difference, Summary


def markdown(found: Sequence[Summary]) -> str:
    """A table with a row a recipe: accuracies in percent, differences in points."""
    tasks = list(found[0].by_task)
    head = ["recipe", "bits", "seeds", *map(_escaped, tasks), "all (95 %)", "worst seed",
            "− float", "− base", "won back", "agreement", "KL"]  # fmt: skip
    lines = [head, ["---"] * len(head)]
    for row in found:
        low, high = row.interval
        lines.append([
            f"`{row.recipe}`", f"{row.bits:.2f}", str(row.seeds),
            *(f"{100 * row.by_task[task]:.1f}" for task in tasks),
            f"{100 * row.accuracy:.1f} ({100 * low:.1f} … {100 * high:.1f})",
            f"{100 * row.worst:.1f}",
            _points(row.minus_float), _points(row.minus_base), _points(row.recovered, " %"),
            "" if row.agreement is None else f"{100 * row.agreement:.1f}",
            "" if row.kl is None else f"{row.kl:.4f}",
        ])  # fmt: skip
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _escaped(name: str) -> str:
    """A task's name, which may be any text, as one cell."""
    return _one_line(name).replace("\\", "\\\\").replace("|", "\\|")


def _one_line(name: str) -> str:
    return " ".join(name.split())


def _points(difference: Difference | None, unit: str = "") -> str:
    if difference is None:
        return ""
    low, high = difference.interval
    text = f"{100 * difference.mean:+.1f}{unit} ({100 * low:+.1f} … {100 * high:+.1f})"
    return text.replace("-", "−")


def table_csv(trials: Sequence[Trial]) -> str:
    """A line a recipe, seed and task."""
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(["recipe", "seed", "bits", "task", "prompts", "right", "agreement", "kl"])
    for trial in trials:
        strayed = trial.figures.trajectory
        forced = (strayed.forced.agreement, strayed.forced.kl) if strayed else (None, None)
        for row in trial.figures.generation:
            lines.writerow([trial.recipe, trial.seed, f"{trial.bits:.3f}", _one_line(row.task),
                            row.checked, row.right, *forced])  # fmt: skip
    return out.getvalue()


def plot(found: Sequence[Summary], file: Path) -> bool:
    """Accuracy by recipe with its interval, as SVG; false where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return False
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1.2 + 0.28 * len(found)), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    for place, row in enumerate(reversed(found)):
        low, high = (100 * end for end in row.interval)
        middle = 100 * row.accuracy
        axes.errorbar(
            middle, place, xerr=[[middle - low], [high - middle]], fmt="o", color="#1f4e79",
            capsize=3, markersize=4,
        )  # fmt: skip
    axes.axvline(100 * found[0].accuracy, color="#999999", linewidth=0.8)
    axes.set_yticks(range(len(found)), [row.recipe for row in reversed(found)])
    axes.set_xlabel("right answers, % (95 % interval over prompts)")
    axes.grid(axis="x", linewidth=0.3)
    with matplotlib.rc_context({"svg.hashsalt": "dqexport"}):  # equal figures give equal files
        figure.savefig(file, metadata={"Date": None})
    return True
