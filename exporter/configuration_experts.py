"""What config.json says about experts."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from exporter.errors import UserError
from exporter.families import Experts, Router

NUMBERS = {"count": int, "per_token": int, "width": int, "groups": int, "top_groups": int,
           "scale": float}  # fmt: skip


def read_experts(
    folder: Path, router: Router | None, config: Mapping[str, Any], layers: int
) -> Experts | None:
    """The experts of a model whose family has some. Raises UserError."""
    if router is None:
        return None
    known = {name: config.get(key) for name, key in router.keys.items()}
    missing = [router.keys[name] for name, value in known.items() if value is None]
    missing += [router.dense] * (config.get(router.dense) is None)
    if missing:
        raise UserError(f"`{folder}/config.json` lacks {missing}", "Use the upstream config.json")
    facts: dict[str, Any] = {"groups": 1, "top_groups": 1, "scale": 1.0}
    facts |= {n: positive(folder, router.keys[n], v, NUMBERS[n]) for n, v in known.items()}
    shared = config.get(router.shared) if router.shared else 0
    if shared:
        shared = positive(folder, str(router.shared), shared, int)
    again = router.renormalize
    experts = Experts(
        blocks=_blocks(folder, router, config[router.dense], layers),
        shared_width=(shared or 0) * facts["width"],
        score=router.score,
        selection_bias=router.selection_bias,
        renormalize=bool(config.get(again)) if isinstance(again, str) else again,
        **facts,
    )
    _check(folder, experts)
    return experts


def positive(folder: Path, key: str, value: Any, kind: type) -> Any:
    """`value` as int or float; UserError where it is not a positive number."""
    with suppress(TypeError, ValueError, OverflowError):
        value = kind(value)
        if value > 0:
            return value
    raise UserError(
        f"`{folder}/config.json` has {key} = {value!r}, not a positive number",
        "Use the upstream config.json",
    )


def _blocks(folder: Path, router: Router, value: Any, layers: int) -> tuple[bool, ...]:
    """Which blocks have experts."""
    if router.dense_is == "count" and isinstance(value, int):
        return tuple(index >= value for index in range(layers))
    if router.dense_is == "places" and isinstance(value, list):
        return tuple(index not in value for index in range(layers))
    if router.dense_is == "flags" and isinstance(value, list) and len(value) == layers:
        return tuple(map(bool, value))
    raise UserError(
        f"`{folder}/config.json` has {router.dense} = {value!r} with {layers} blocks",
        "Use the upstream config.json",
    )


def _check(folder: Path, experts: Experts) -> None:
    inside = experts.count // experts.groups * experts.top_groups
    if experts.count % experts.groups == 0 and experts.per_token <= inside <= experts.count:
        return
    raise UserError(
        f"{experts.per_token} of {experts.count} experts a token, out of {experts.top_groups} of "
        f"{experts.groups} groups, is not possible",
        f"Check `{folder}/config.json`",
    )
