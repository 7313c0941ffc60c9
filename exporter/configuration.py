"""config.json of a checkpoint: which family it is, and all that there is to know of the model."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from exporter.configuration_experts import positive, read_experts
from exporter.configuration_rope import read_rope
from exporter.errors import UserError
from exporter.families import Family, Spec
from exporter.family_table import FAMILIES
from exporter.tokenizer import added_tokens


def read_configuration(
    folder: Path,
    mask_id: int | None,
    eot_id: int | None,
    block_length: int | None = None,
    name: str | None = None,
) -> tuple[Family, Spec]:
    """Family and facts of the model in `folder`; the others fill in what config.json does not say.

    `block_length`, that of the mask of block-causal attention, is for models trained with several.
    `name` is that of the family, whatever config.json calls the model.

    Raises UserError for an unknown family, settings that are not implemented, missing or impossible
    numbers.
    """
    config = read_json(folder / "config.json")
    family = _family(folder, config) if name is None else named_family(name)
    _check_routing(folder, config)
    if block_length is not None:
        family = _in_blocks(folder, family)
        config = {**config, family.keys.get("block_length", "block_length"): block_length}
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


def named_family(name: str) -> Family:
    """The row of the table with this name. Raises UserError."""
    for family in FAMILIES:
        if family.name == name:
            return family
    known = ", ".join(family.name for family in FAMILIES)
    raise UserError(f"No family is called `{name}`", f"One of {known}")


def _family(folder: Path, config: dict[str, Any]) -> Family:
    kind, names = config.get("model_type"), config.get("architectures") or []
    known = ", ".join(f"`{f.model_type}` ({'/'.join(f.architectures)})" for f in FAMILIES)
    for family in FAMILIES:
        kinds = (family.model_type, *family.also)
        if kind in kinds and (not names or set(names) & set(family.architectures)):
            return family
    raise UserError(
        f"`{folder}` holds model_type `{kind}` with architectures {names}, which is not known",
        f"Known: {known}. A model in the layout of one of them can be opened with --family NAME,"
        " iLLaDA with --family illada. A family is a row of exporter/family_table.py",
    )


def _check_routing(folder: Path, config: dict[str, Any]) -> None:
    """LLaDA2.2 goes by the names of LLaDA2.1, but chooses experts for whole blocks of tokens."""
    if config.get("expert_capacity"):
        raise UserError(
            f"`{folder}` routes blocks of tokens to {config['expert_capacity']!r} experts"
            " (expert_capacity), as LLaDA2.2 does, which is not implemented",
            "LLaDA2.0 and 2.1 are; computed as one of these its answers would be wrong",
        )


def _in_blocks(folder: Path, family: Family) -> Family:
    """The family with block-causal attention. Raises UserError where it has none."""
    if family.either:
        return replace(family, attention="block-causal", positions="skip-padding")
    if family.attention != "block-causal":
        raise UserError(
            f"A block length of the mask for `{folder}`, whose attention is full",
            "Leave it out: blocks of decoding are another matter",
        )
    return family


def _spec(
    folder: Path, family: Family, config: dict[str, Any], mask_id: int | None, eot_id: int | None
) -> Spec:
    _check_supported(folder, family, config)
    facts: dict[str, Any] = {name: _value(config, key) for name, key in family.keys.items()}
    facts["kv_heads"] = facts.get("kv_heads") or facts["heads"]
    facts["vocab_size"] = facts["vocab_size"] or config.get("vocab_size")
    facts.setdefault("rotary_share", 1.0)
    missing = [family.keys[n] for n in family.keys if facts[n] is None and n not in _OPTIONAL]
    if missing:
        raise UserError(f"`{folder}/config.json` lacks {missing}", "Use the upstream config.json")
    if not facts.get("head_dim"):
        facts["head_dim"] = facts["width"] // facts["heads"]
    facts["tied"] = bool(facts["tied"])
    numbers = {f.name: f.type for f in fields(Spec) if f.name in facts and f.type in (int, float)}
    for name, kind in numbers.items():
        facts[name] = positive(folder, family.keys.get(name, name), facts[name], kind)
    if family.attention == "block-causal":
        key = family.keys.get("block_length", "block_length")
        length = config.get(key)
        length = family.block_length if length is None else length
        facts["block_length"] = positive(folder, key, length, int)
    yarn, query_scale = read_rope(folder, family.rope, config, facts["max_length"])
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
        shift=family.shift,
        corruption=family.corruption,
        block_seed=family.block_seed,
        positions=family.positions,
        experts=read_experts(folder, family.experts, config, facts["layers"]),
        commit=family.commit,
        yarn=yarn,
        query_scale=query_scale,
        **{"block_length": None, **facts, **ids},
    )


def _value(config: dict[str, Any], key: str) -> Any:
    """What stands at `key`, or at `table.key`; None where nothing does."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _check_supported(folder: Path, family: Family, config: dict[str, Any]) -> None:
    for key, allowed in family.required.items():
        if key in config and config[key] not in allowed:
            raise UserError(
                f"`{folder}/config.json` sets {key} = {config[key]!r}, which is not implemented",
                f"Implemented: {key} in {list(allowed)}",
            )


_OPTIONAL = {"head_dim", "tied", "block_length"}


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
    mask = _mask_token(folder) if mask is None else mask
    mask = family.mask_id if mask is None else mask
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


def _mask_token(folder: Path) -> int | None:
    """The id of what tokenizer_config.json calls the mask token."""
    file = folder / "tokenizer_config.json"
    token = read_json(file).get("mask_token") if file.is_file() else None
    content = token.get("content") if isinstance(token, dict) else token
    return added_tokens(folder).get(content) if isinstance(content, str) else None
