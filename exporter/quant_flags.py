"""The flags of quantization, which several commands have in common."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any, get_type_hints

import typer

from exporter.quant_options import QuantOptions

LEAST = {"group": 1, "rank": 1, "samples": 1, "seed": 0, "rotation_seed": 0, "damping": 1e-9}


def takes_quantization(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with a flag for every field of QuantOptions in place of its parameter `quant`."""
    own = inspect.signature(command).parameters
    hints = get_type_hints(command, include_extras=True)
    kinds = get_type_hints(QuantOptions)
    flags: dict[str, Any] = {}
    for each in fields(QuantOptions):
        option = typer.Option(help=each.metadata["help"], min=LEAST.get(each.name))
        flags[each.name] = Annotated[kinds[each.name], option]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        quant = QuantOptions(**{name: given.pop(name) for name in flags})
        command(quant=quant, **given)

    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=own[name].default,
                          annotation=hints[name])
        for name in own if name != "quant"
    ] + [
        inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default,
                          annotation=flags[each.name])
        for each in fields(QuantOptions)
    ]  # fmt: skip
    vars(run)["__signature__"] = inspect.Signature(parameters)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
