"""Writes the settings that were found into a bundle's manifest."""

from dataclasses import asdict, replace
from pathlib import Path

from exporter import report
from exporter.emit import describe_file, write_manifest
from exporter.errors import UserError
from exporter.manifest import Decode, Manifest, Tuned, significant
from exporter.runtime.settings import Settings
from exporter.tuning.search import Trial
from exporter.verify import check_seal, read_manifest


def read_sound(bundle: Path) -> Manifest:
    """The manifest of a bundle that nobody has changed by hand; UserError otherwise."""
    if damaged := check_seal(bundle):
        what = ", ".join(f"{name} {reason}" for name, reason in damaged.items())
        raise UserError(
            f"`{bundle}` is damaged: {what}", "Copy the bundle again, or build it again"
        )
    return read_manifest(bundle)


def apply(bundle: Path, manifest: Manifest, best: Trial, base: Trial, tasks: str) -> Manifest:
    """Make the settings of `best` the bundle's defaults; `base` are those that it was built with.

    The gate goes on with the settings that it was recorded with.
    """
    settings = replace(Settings(**manifest.decode.model_dump()), **best.decode)
    low, high = best.against.interval
    tuned = Tuned(
        tasks=tasks,
        prompts=best.prompts,
        accuracy=significant(best.accuracy),
        accuracy_before=significant(base.accuracy),
        interval=(significant(low), significant(high)),
        speedup=significant(base.seconds / best.seconds),
        forwards=significant(best.forwards),
        forwards_before=significant(base.forwards),
        before=manifest.decode if manifest.tuned is None else manifest.tuned.before,
    )
    changed = manifest.model_copy(update={"decode": Decode(**asdict(settings)), "tuned": tuned})
    report.write(bundle, changed)
    written = {"report.html", "README.md"}
    files = [describe_file(bundle, f.path) if f.path in written else f for f in manifest.files]
    changed = changed.model_copy(update={"files": files})
    write_manifest(bundle, changed)
    return changed
