"""Everything that a build refuses before any work: targets, prompts, outputs, sizes."""

from collections.abc import Sequence
from pathlib import Path

import targets
from exporter.emit import MANIFEST, WORK
from exporter.engine_plans import default_kinds
from exporter.engines import check_builder
from exporter.errors import UserError
from exporter.families import Spec, block_shapes
from exporter.graph_kind import GraphKind
from exporter.linear_groups import group_of_each
from exporter.operator_use import OperatorUse, cache_bits
from exporter.prompts import Prompts
from exporter.recipes import Recipe
from exporter.runtime.settings import Settings


def load_target(name: str) -> targets.Target:
    """The target called `name`; UserError with the close ones where there is none."""
    try:
        return targets.load(name)
    except ValueError as error:
        raise UserError(str(error), "List them with `dqexport targets`") from None


def check_accuracy(target: targets.Target, use: OperatorUse | None, level: int) -> None:
    """Raises UserError where `--accuracy-level` would change nothing: ONNX Runtime has all levels,
    plugins the last, which rounds inputs to 8 bits.
    """
    if target.runtime == "onnxruntime" or level == 0 or (level == 4 and use is not None):
        return
    raise UserError(
        f"The runtime of `{target.name}` multiplies 4-bit weights at accuracy level 0, and with "
        f"plugins at 4; here --accuracy-level is {level}{', with --no-operators' * (not use)}",
        "Leave --no-operators out" if level == 4 else "Use --accuracy-level 4, or leave it out",
    )


def check_formats(
    target: targets.Target, spec: Spec, recipe: Recipe, use: OperatorUse | None
) -> None:
    """Raises UserError on formats that the target's runtime, with operators of ours where these
    are in `use`, has no graph for.
    """
    grid, rows = recipe.weights, recipe.activation
    bits = cache_bits(target, use, recipe)
    if recipe.kv_bits not in bits:
        others = "--no-operators" if use is None else "use a recipe with 8-bit attention, as w4a8"
        raise UserError(
            f"The runtime of `{target.name}` keeps keys and values in "
            f"{' or '.join(map(str, bits))} bits here, not in {recipe.kv_bits}",
            f"Leave --kv-bits out, or {others}"
            if recipe.kv_bits in target.cache_bits
            else "Leave --kv-bits out",
        )
    if recipe.embed_bits not in target.embed_bits:
        raise UserError(
            f"The runtime of `{target.name}` looks up embeddings in floats alone, not in "
            f"{recipe.embed_bits} bits",
            "Leave --embed-bits out",
        )
    integers = rows is not None and rows.granularity != "group"
    ours = use is not None and 4 in use.weight_bits
    if grid is not None and grid.bits <= 4 and integers and not (target.widens_int4 or ours):
        raise UserError(
            f"The runtime of `{target.name}` does not multiply {grid.bits}-bit weights and inputs "
            "rounded a token",
            "Leave --no-operators out, or use --activation group, or 8-bit weights or float inputs "
            "(w8a8, w4a16)",
        )
    if grid is not None and not target.uneven_groups:
        _check_groups(target, spec, recipe)


def _check_groups(target: targets.Target, spec: Spec, recipe: Recipe) -> None:
    """Raises UserError where a scale's inputs do not divide those of a linear."""
    for index in range(spec.layers):
        shapes = block_shapes(spec, index)
        for name, group in group_of_each(spec, index).items():
            grid, width = recipe.on_grids(index, group).grid, shapes[name][1]
            if grid is not None and width % grid.columns(width):
                raise UserError(
                    f"The runtime of `{target.name}` takes whole groups alone: the {width} inputs "
                    f"of `{name}` in block {index} are not a multiple of {grid.columns(width)}",
                    "Use --group with a number that divides it, or the recipe fp16",
                )


def count_engines(
    target: targets.Target,
    kinds: Sequence[GraphKind],
    settings: Settings,
    asked: Sequence[str] | None,
    plugins: bool = False,
) -> int:
    """How many engines are built here: of the graphs `asked` for, or those that defaults need.

    `plugins`: graphs may have nodes that are plugins.

    Raises UserError where a graph does not exist, where engines are built on the device, and where
    what builds them is missing.
    """
    here = target.engine_built == "ahead-of-time"
    if asked is not None and not here:
        raise UserError(f"No engines are built here for `{target.name}`", "Leave --engine out")
    names = [kind.name for kind in kinds]
    for name in asked or ():
        if name not in names:
            raise UserError(f"There is no graph `{name}`", f"There are {', '.join(names)}")
    check_builder(target, plugins)
    wanted = default_kinds(kinds, settings) if asked is None else asked
    return len(wanted) if here else 0


def check_lengths(prompts: Prompts, settings: Settings, canvas: int) -> None:
    """Every prompt and its answer must fit into the longest canvas."""
    own = (length or settings.gen_length for length in prompts.lengths)
    sizes = [(len(ids), n) for ids, n in zip(prompts.calibration, own, strict=True)]
    sizes += [(len(ids), settings.gen_length) for ids in prompts.held_out]
    longest, answer = max(sizes, key=sum)
    if longest + answer > canvas:
        raise UserError(
            f"A prompt of {longest} tokens and an answer of {answer} do not fit into "
            f"the canvas of {canvas} tokens",
            "Shorten the prompts, or lower --gen-length",
        )


def check_output(out: Path, force: bool) -> None:
    """Never touch a folder that is not ours, nor a finished bundle unasked."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"`{out}` is a file", "Choose another folder with -o")
    if (out / MANIFEST).is_file():
        if not force:
            raise UserError(
                f"`{out}` holds a bundle already", "Replace it with --force, or choose another -o"
            )
    elif any(out.iterdir()) and not (out / WORK).is_dir():
        raise UserError(
            f"`{out}` is not empty and holds no bundle", "Choose an empty or new folder with -o"
        )
