"""Everything that a build refuses before any work: targets, prompts, outputs, sizes."""

from pathlib import Path

import targets
from exporter.emit import MANIFEST, WORK
from exporter.errors import UserError
from exporter.prompts import Prompts
from exporter.runtime.settings import Settings


def load_target(name: str) -> targets.Target:
    """A target that `build` can serve today."""
    try:
        target = targets.load(name)
    except ValueError as error:
        raise UserError(str(error), "List them with `dqexport targets`") from None
    if not target.supported:
        raise UserError(
            f"Target `{name}` ({target.title}): {target.build_today}",
            "Build for `cpu` or `cuda`: the portable graphs are what its runtime parses",
        )
    return target


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
