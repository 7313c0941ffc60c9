"""How far attention on integers is from exact attention, by the operators' references.

Each operator's numpy reference, which kernels are held to, against float64, on the operands of the
benchmark (tools/attention_data.py): one head of 128 channels, values on scales that cover them.
Relative L1 and L2 errors and the root of the mean square, medians over seeds with least and most.
"""

from collections.abc import Callable
from statistics import median
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer

from ort_ops.attention.op import AttentionTops, reference
from tools.attention_data import KINDS, exact, operands
from tools.tables import Row, render

WIDTH = 128
FORMS = {
    "integers, 8 bits": AttentionTops(),
    "keys and values of 4 bits": AttentionTops(k=7, v=15),
    "values in floats": AttentionTops(v=0, p=0),
}

Float64 = npt.NDArray[np.float64]
Measure = Callable[[Float64, Float64], float]
MEASURES: dict[str, Measure] = {
    "relative L1": lambda y, right: float(np.abs(y - right).sum() / np.abs(right).sum()),
    "relative L2": lambda y, right: float(np.linalg.norm(y - right) / np.linalg.norm(right)),
    "RMSE": lambda y, right: float(np.sqrt(np.square(y - right).mean())),
}


def errors(kind: str, keys: int, queries: int, seed: int) -> dict[str, dict[str, float]]:
    """Of each form each measure, on one draw."""
    q, k, v = operands(kind, 1, queries, keys, 1, 1, WIDTH, seed)
    right = exact(q, k, v)[0, 0].numpy()
    x, keys32, values = q[0].float().numpy(), k.float().numpy(), v.float().numpy()
    everyone = np.ones((1, 1, queries, keys), np.bool_)
    found = {}
    for name, tops in FORMS.items():
        low, high = values.min((0, 2)), values.max((0, 2))
        scale = ((high - low) / max(tops.v, 1)).astype(np.float32)
        zero = np.rint(-low / scale)
        y = reference(x, keys32, values, everyone, everyone[:, 0, 0], scale, zero, 1, tops)[0]
        found[name] = {measure: take(y, right) for measure, take in MEASURES.items()}
    return found


def table(keys: list[int], queries: int, seeds: int) -> list[Row]:
    rows: list[Row] = []
    for kind in KINDS:
        for many in keys:
            draws = [errors(kind, many, queries, seed) for seed in range(seeds)]
            for form in FORMS:
                row: dict[str, object] = {"operands": kind, "keys": many, "attention": form}
                for measure in MEASURES:
                    numbers = [draw[form][measure] for draw in draws]
                    row[measure] = median(numbers)
                    row[f"{measure}: least … most"] = (min(numbers), max(numbers))
                rows.append(row)
    return rows


def main(
    keys: Annotated[list[int] | None, typer.Option(help="Repeatable.")] = None,
    queries: Annotated[int, typer.Option(min=1)] = 64,
    seeds: Annotated[int, typer.Option(min=1)] = 10,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Print the errors of each form of attention on each kind of operands."""
    typer.echo(render(table(keys or [1024, 4096], queries, seeds), as_json))


if __name__ == "__main__":
    typer.run(main)
