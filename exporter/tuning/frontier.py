"""What was tried, as a table and as a plot of accuracy against speed."""

from collections.abc import Sequence
from pathlib import Path

from exporter.tuning.search import Trial, frontier

HEAD = ("settings", "right %", "− as built (95 %)", "forwards", "seconds", "times as fast", "")


def markdown(trials: Sequence[Trial], best: Trial) -> str:
    """A row a setting, the fastest first; the first of `trials` is the bundle's own."""
    lines = [list(HEAD), ["---"] * len(HEAD)]
    edge = {trial.name for trial in frontier(trials)}
    for trial in sorted(trials, key=lambda t: t.seconds):
        low, high = (100 * end for end in trial.against.interval)
        note = "**chosen**" if trial is best else "frontier" if trial.name in edge else ""
        lines.append([
            f"`{trial.name}`", f"{100 * trial.accuracy:.1f}",
            f"{100 * trial.against.difference:+.1f} ({low:+.1f} … {high:+.1f})".replace("-", "−"),
            f"{trial.forwards:.1f}", f"{trial.seconds:.4g}",
            f"{trials[0].seconds / trial.seconds:.2f}", note,
        ])  # fmt: skip
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def plot(trials: Sequence[Trial], best: Trial, budget: float, file: Path) -> bool:
    """Accuracy against seconds as SVG; false where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return False
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    edge = frontier(trials)
    axes.plot([t.seconds for t in edge], [100 * t.accuracy for t in edge], color="#1f4e79", lw=1)
    axes.scatter([t.seconds for t in trials], [100 * t.accuracy for t in trials], s=14, c="#8aa")
    for trial, label in ((trials[0], "as built"), (best, "chosen")):
        axes.annotate(label, (trial.seconds, 100 * trial.accuracy), xytext=(4, 4),
                      textcoords="offset points")  # fmt: skip
        axes.scatter([trial.seconds], [100 * trial.accuracy], s=30, c="#c33")
    axes.axhline(100 * (trials[0].accuracy - budget), color="#999", lw=0.8, ls="--")
    axes.set_xscale("log")
    axes.set_xlabel("seconds an answer")
    axes.set_ylabel("right answers, %")
    axes.grid(lw=0.3)
    with matplotlib.rc_context({"svg.hashsalt": "dqexport"}):
        figure.savefig(file, metadata={"Date": None})
    return True
