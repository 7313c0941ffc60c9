"""Settings as text: `threshold=0.9` read, all of them shown."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, get_args, get_type_hints

from .errors import UserError
from .settings import Settings

SWITCH = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}


def change(settings: Settings, text: str) -> Settings:
    """`settings` with the changes in `text`, such as `gen_length=32 steps=none`.

    Names may have dashes for underscores. Raises `UserError` for what is not known, cannot be read,
    or does not go together.
    """
    hints = get_type_hints(Settings)
    given: dict[str, Any] = {}
    for part in text.split():
        name, equals, value = part.partition("=")
        name = name.lstrip("-").replace("-", "_")
        if name not in hints or not equals:
            raise UserError(
                f"no setting {part!r}",
                hint=f"give NAME=VALUE; names are {', '.join(f.name for f in fields(Settings))}",
            )
        given[name] = _read(name, value, hints[name])
    if not given:
        raise UserError("nothing to set", hint="give NAME=VALUE, such as threshold=0.9")
    return replace(settings, **given)


def _read(name: str, text: str, hint: Any) -> Any:
    """A value of the type that a field is declared with."""
    kinds = get_args(hint) or (hint,)
    if text.lower() == "none" and type(None) in kinds:
        return None
    kind = kinds[0]
    try:
        return SWITCH[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        what = "on or off" if kind is bool else f"of type {kind.__name__}"
        raise UserError(f"{name} is {what}, not {text!r}") from None


def show(settings: Settings) -> str:
    """A line a setting, `name=value` as `change` reads it."""
    lines = []
    for field in fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, bool):
            value = "on" if value else "off"
        lines.append(f"{field.name}={'none' if value is None else value}")
    return "\n".join(lines)
