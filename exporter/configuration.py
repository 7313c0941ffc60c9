"""config.json of a checkpoint: which family it is, and all that there is to know of the model."""

import json
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from exporter.errors import UserError
from exporter.families import FAMILIES, Family, Spec
from exporter.tokenizer import added_tokens


def read_configuration(
    folder: Path, mask_id: int | None, eot_id: int | None
) -> tuple[Family, Spec]:
    """Family and facts of the model in `folder`; the ids fill in what config.json does not carry.

    Raises UserError for an unknown family, settings that are not implemented, missing or impossible
    numbers.
    """
    config = read_json(folder / "config.json")
    family = _family(folder, config)
    return family, _spec(folder, family, config, mask_id, eot_id)


def read_json(file: Path) -> dict[str, Any]:
    """The table in a JSON file; UserError where it is missing, not JSON, or no table."""
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(
            f"`{file.parent}` has no {file.name}", "Give a folder in the Hugging Face layout"
        ) from None
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"`{file}` is not JSON: {error}", "Download it again") from None
    if not isinstance(content, dict):
        raise UserError(
            f"`{file}` holds {type(content).__name__}, not a table", "Download it again"
        )
    return content


def _family(folder: Path, config: dict[str, Any]) -> Family:
    kind, names = config.get("model_type"), config.get("architectures") or []
    known = ", ".join(f"`{f.model_type}` ({'/'.join(f.architectures)})" for f in FAMILIES)
    for family in FAMILIES:
        if family.model_type == kind and (not names or set(names) & set(family.architectures)):
            return family
    raise UserError(
        f"`{folder}` holds model_type `{kind}` with architectures {names}, which is not known",
        f"Known: {known}. A family is a row of exporter/families.py",
    )


def _spec(
    folder: Path, family: Family, config: dict[str, Any], mask_id: int | None, eot_id: int | None
) -> Spec:
    for key, allowed in family.required.items():
        if key in config and config[key] not in allowed:
            raise UserError(
                f"`{folder}/config.json` sets {key} = {config[key]!r}, which is not implemented",
                f"Implemented: {key} in {list(allowed)}",
            )
    facts: dict[str, Any] = {name: config.get(key) for name, key in family.keys.items()}
    facts["kv_heads"] = facts.get("kv_heads") or facts["heads"]
    facts["vocab_size"] = facts["vocab_size"] or config.get("vocab_size")
    missing = [family.keys[n] for n in family.keys if facts[n] is None and n not in _OPTIONAL]
    if missing:
        raise UserError(f"`{folder}/config.json` lacks {missing}", "Use the upstream config.json")
    if not facts.get("head_dim"):
        facts["head_dim"] = facts["width"] // facts["heads"]
    facts["tied"] = bool(facts["tied"])
    numbers = {f.name: f.type for f in fields(Spec) if f.name in facts and f.type in (int, float)}
    for name, kind in numbers.items():
        facts[name] = _positive(folder, family.keys.get(name, name), facts[name], kind)
    if facts["heads"] % facts["kv_heads"]:
        raise UserError(
            f"{facts['heads']} query heads do not divide into {facts['kv_heads']} key heads",
            f"Check `{folder}/config.json`",
        )
    bias = family.qkv_bias
    ids = _special_ids(folder, family, config, mask_id, eot_id, facts["vocab_size"])
    return Spec(
        family=family.name,
        qkv_bias=bool(config.get(bias)) if isinstance(bias, str) else bias,
        qk_norm=family.qk_norm,
        attention=family.attention,
        block_length=None,
        shift=family.shift,
        corruption=family.corruption,
        block_seed=family.block_seed,
        positions=family.positions,
        **facts,
        **ids,
    )


def _positive(folder: Path, key: str, value: Any, kind: type) -> Any:
    """`value` as int or float; UserError where it is not a positive number."""
    with suppress(TypeError, ValueError, OverflowError):
        value = kind(value)
        if value > 0:
            return value
    raise UserError(
        f"`{folder}/config.json` has {key} = {value!r}, not a positive number",
        "Use the upstream config.json",
    )


_OPTIONAL = {"head_dim", "tied"}


def _special_ids(
    folder: Path,
    family: Family,
    config: dict[str, Any],
    mask_id: int | None,
    eot_id: int | None,
    vocab: int,
) -> dict[str, Any]:
    """Mask, eos, eot, pad and bos id, from the options, the configuration and the tokenizer."""
    mask = config.get("mask_token_id") if mask_id is None else mask_id
    if mask is None:
        raise UserError(
            f"`{folder}/config.json` carries no mask_token_id", "Give it with --mask-id ID"
        )
    eos = config.get("eos_token_id")
    eos = eos[0] if isinstance(eos, list) and eos else eos
    if eot_id is None and family.eot_token:
        eot_id = added_tokens(folder).get(family.eot_token)
    pad = config.get("pad_token_id")
    pad = eos if pad is None else pad
    ids = {
        "mask_id": mask,
        "eos_id": eos,
        "eot_id": None if eot_id == eos else eot_id,
        "pad_id": 0 if pad is None else pad,
        "bos_id": config.get("bos_token_id"),
    }
    for name, value in ids.items():
        if value is not None and not (isinstance(value, int) and 0 <= value < vocab):
            raise UserError(
                f"{name} is {value!r}, outside of the vocabulary 0 … {vocab - 1}",
                f"Check `{folder}/config.json`, --mask-id and --eot-id",
            )
    return ids
