"""Opening checkpoints in their upstream layout: what is read, and everything that is refused."""

import json
import math
import os
import pickle
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from exporter.checkpoint import Checkpoint, check_weights, open_checkpoint
from exporter.errors import UserError
from exporter.families import model_shapes
from exporter.progress import Progress
from exporter.work import Work
from tests.fixtures_lower import (
    GOLDEN,
    GOLDEN_FAMILIES,
    config_of,
    golden,
    golden_variant,
    write_checkpoint,
)

each_family = pytest.mark.parametrize("family", GOLDEN_FAMILIES)
DREAM_HEAD, LLADA_HEAD = "lm_head.weight", "model.transformer.ff_out.weight"


def weights_of(family: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / family / "model.safetensors")


def same_weights(a: Checkpoint, b: Checkpoint) -> bool:
    """Whether all tensors are equal, bit by bit."""
    keys = {name.rpartition(".")[::2] for name in model_shapes(a.spec)} | {("", "head")}
    pairs = [(c.tensor(n, int(i) if i else None) for c in (a, b)) for i, n in keys]
    return all(torch.equal(*pair) for pair in pairs)


# What is read


def test_llada_is_described_as_upstream_does() -> None:
    spec = golden("llada").spec
    assert (spec.family, spec.attention, spec.shift, spec.positions) == (
        "llada",
        "full",
        False,
        "absolute",
    )
    assert (spec.layers, spec.width, spec.heads, spec.kv_heads, spec.head_dim) == (3, 64, 4, 4, 16)
    assert (spec.mlp_width, spec.vocab_size, spec.max_length) == (160, 208, 256)
    assert (spec.norm_eps, spec.rope_theta) == (1e-5, 500000.0)
    assert (spec.qkv_bias, spec.qk_norm, spec.tied) == (False, False, False)
    assert (spec.mask_id, spec.eos_id, spec.eot_id, spec.pad_id) == (200, 193, None, 193)
    assert spec.special_ids == [193]


def test_dream_is_described_as_upstream_does() -> None:
    spec = golden("dream").spec
    assert (spec.family, spec.attention, spec.shift, spec.positions) == (
        "dream",
        "full",
        True,
        "skip-padding",
    )
    assert (spec.layers, spec.width, spec.heads, spec.kv_heads, spec.head_dim) == (3, 64, 4, 2, 16)
    assert (spec.mlp_width, spec.vocab_size, spec.max_length) == (160, 216, 256)
    assert (spec.norm_eps, spec.rope_theta) == (1e-6, 1000000.0)
    assert (spec.qkv_bias, spec.qk_norm, spec.tied) == (True, False, False)
    assert (spec.mask_id, spec.eos_id, spec.bos_id, spec.pad_id) == (209, 202, 202, 202)


@each_family
def test_every_stored_tensor_has_one_name(family: str) -> None:
    checkpoint, stored = golden(family), weights_of(family)
    assert len(checkpoint.entries) == len(stored)
    assert checkpoint.parameters == sum(t.numel() for t in stored.values())
    block = checkpoint.block(1)
    names = checkpoint.family.tensors
    assert all(torch.equal(block[n], stored[names[n].format(i=1)]) for n in block)
    assert torch.equal(checkpoint.tensor("head"), stored[names["head"]])


@each_family
@pytest.mark.parametrize("count", [1, 50, 4096])
def test_rows_and_gather_read_parts_of_a_matrix(family: str, count: int) -> None:
    checkpoint = golden(family)
    whole = checkpoint.tensor("embed")
    parts = list(checkpoint.rows("embed", count))
    assert torch.equal(torch.cat(parts), whole)
    assert max(len(part) for part in parts) <= count
    ids = torch.tensor([[3, 200, 3], [0, 1, 207]])
    assert torch.equal(checkpoint.gather("embed", ids), whole[ids])


@each_family
def test_shards_with_an_index_equal_one_file(family: str, tmp_path: Path) -> None:
    folder, stored = tmp_path / "sharded", weights_of(family)
    folder.mkdir()
    shutil.copy(GOLDEN / family / "config.json", folder)
    table = {name: f"model-{n % 3 + 1:05}-of-00003.safetensors" for n, name in enumerate(stored)}
    for file in set(table.values()):
        shard = {name: stored[name] for name in stored if table[name] == file}
        save_file(shard, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": table}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    checkpoint = open_checkpoint(folder)
    assert [file.name for file in checkpoint.files] == sorted(set(table.values()))
    assert same_weights(checkpoint, golden(family))


@each_family
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_exactly(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    halves = {name: tensor.to(dtype) for name, tensor in weights_of(family).items()}
    half = open_checkpoint(golden_variant(family, tmp_path / "half", tensors=halves))
    floats = {name: tensor.float() for name, tensor in halves.items()}
    full = open_checkpoint(golden_variant(family, tmp_path / "full", tensors=floats))
    assert half.tensor("embed").dtype == torch.float32
    assert same_weights(half, full)


def tied_dream(folder: Path) -> Checkpoint:
    tensors = {name: t for name, t in weights_of("dream").items() if name != DREAM_HEAD}
    config = {**config_of(GOLDEN / "dream"), "tie_word_embeddings": True}
    return open_checkpoint(write_checkpoint(folder, config, tensors))


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    tied = tied_dream(tmp_path / "tied")
    assert tied.spec.tied
    assert torch.equal(tied.tensor("head"), tied.tensor("embed"))
    assert tied.parameters == golden("dream").parameters - 216 * 64


def test_the_tokenizer_tells_the_end_of_turn_id(tmp_path: Path) -> None:
    folder = golden_variant("llada", tmp_path / "a")
    tokens = [{"id": 193, "content": "<|endoftext|>"}, {"id": 195, "content": "<|eot_id|>"}]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    assert open_checkpoint(folder).spec.special_ids == [193, 195]
    assert open_checkpoint(folder, eot_id=197).spec.special_ids == [193, 197]
    assert open_checkpoint(folder, eot_id=193).spec.special_ids == [193]  # the same token


def test_the_first_of_several_eos_ids_counts(tmp_path: Path) -> None:
    folder = golden_variant("dream", tmp_path / "a", {"eos_token_id": [5, 6], "pad_token_id": None})
    spec = open_checkpoint(folder).spec
    assert (spec.eos_id, spec.pad_id) == (5, 5)


# What is refused

Break = Callable[[Path], None]


def set_config(**values: Any) -> Break:
    """Change config.json; a value of `...` takes the key out."""

    def change(folder: Path) -> None:
        config = {**config_of(folder), **values}
        config = {key: value for key, value in config.items() if value is not ...}
        (folder / "config.json").write_text(json.dumps(config))

    return change


def set_tensors(**tensors: torch.Tensor | None) -> Break:
    """Change tensors, `__` in a name for a dot; None takes one out."""

    def change(folder: Path) -> None:
        file = folder / "model.safetensors"
        changed = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
        merged: dict[str, torch.Tensor | None] = {**load_file(file), **changed}
        save_file({name: t for name, t in merged.items() if t is not None}, file)

    return change


def cut_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1000)


def lose_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def cut_config(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text[:100])


def list_config(folder: Path) -> None:
    (folder / "config.json").write_text("[1, 2]")


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def set_index(weight_map: object) -> Break:
    def change(folder: Path) -> None:
        index = folder / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}))

    return change


REFUSED: list[tuple[str, Break, str, str]] = [
    ("llada", lose_config, "has no config.json", "Hugging Face layout"),
    ("llada", cut_config, r"config.json` is not JSON", "Download it again"),
    ("llada", list_config, r"config.json` holds list, not a table", "Download it again"),
    ("llada", set_config(model_type="gpt2"), "model_type `gpt2`", "`llada` .*`Dream`"),
    (
        "dream",
        set_config(architectures=["DreamForNobody"]),
        r"model_type `Dream` with architectures \['DreamForNobody'\]",
        r"`Dream` \(DreamModel\)",
    ),
    ("llada", set_config(alibi=True), "alibi = True, which is not implemented", "alibi in"),
    ("llada", set_config(layer_norm_type="default"), "layer_norm_type = 'default'", r"\['rms'\]"),
    ("llada", set_config(include_bias=True), "include_bias = True", "False"),
    (
        "dream",
        set_config(rope_scaling={"type": "yarn", "factor": 4.0}),
        r"rope_scaling = \{'type': 'yarn', 'factor': 4.0\}",
        "None",
    ),
    ("dream", set_config(hidden_act="gelu"), "hidden_act = 'gelu'", "silu"),
    ("llada", set_config(d_model=...), r"lacks \['d_model'\]", "upstream config.json"),
    ("llada", set_config(n_layers="many"), "n_layers = 'many', not a positive", "upstream"),
    ("llada", set_config(n_layers=-3), "n_layers = -3, not a positive", "upstream"),
    ("dream", set_config(rms_norm_eps=0), "rms_norm_eps = 0.0, not a positive", "upstream"),
    ("dream", set_config(num_key_value_heads=3), "4 query heads .* 3 key heads", "config.json"),
    ("llada", set_config(mask_token_id=...), "carries no mask_token_id", "--mask-id"),
    ("llada", set_config(mask_token_id=208), "mask_id is 208, outside .* 0 … 207", "--mask-id"),
    ("llada", set_config(eos_token_id=-1), "eos_id is -1, outside .* 0 … 207", "--eot-id"),
    ("llada", set_config(n_layers=4), "lacks the tensor `model.transformer.blocks.3", "incomplete"),
    ("dream", set_tensors(model__norm__weight=None), "lacks the tensor `model.norm", "incomplete"),
    (
        "dream",
        set_tensors(model__norm__weight=torch.ones(63)),
        r"`model.norm.weight` has shape \[63\], config.json asks for \[64\]",
        "same model",
    ),
    ("llada", set_config(mlp_hidden_size=96), r"shape \[160, 64\], .* \[96, 64\]", "same model"),
    (
        "dream",
        set_tensors(lm_head__weight=torch.ones(216, 64, dtype=torch.int8)),
        "`lm_head.weight` is stored as torch.int8",
        "quantized",
    ),
    ("llada", cut_weights, "is not a whole safetensors file.*truncated", "Download it again"),
    ("llada", only_pickle, "no .safetensors weights .only pytorch_model.bin", "safetensors"),
    ("llada", no_weights, "no .safetensors weights$", "safetensors"),
    ("llada", set_index({"a": "model-00002.safetensors"}), "`model-00002.safetensors`", "shard"),
    ("llada", set_index({"a": "../llada/model.safetensors"}), "'../llada/model.saf", "again"),
    ("llada", set_index({"a": "/etc/passwd"}), "'/etc/passwd', which is not a file name", "again"),
    ("llada", set_index({"a": ".."}), r"`\.\.`|'\.\.'", "ownload"),
    ("llada", set_index({"a": 7}), "names 7, which is not a file name", "again"),
    ("llada", set_index(["model.safetensors"]), "index.json. has no table weight_map", "again"),
]


@pytest.mark.parametrize(
    ("family", "spoil", "message", "hint"), REFUSED, ids=[row[2] for row in REFUSED]
)
def test_what_cannot_be_used_is_refused(
    family: str, spoil: Break, message: str, hint: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(GOLDEN / family, tmp_path / family)
    spoil(folder)
    with pytest.raises(UserError, match=message) as error:
        open_checkpoint(folder)
    assert re.search(hint, error.value.hint)


def test_experts_that_are_chosen_for_whole_blocks_are_refused(tmp_path: Path) -> None:
    """LLaDA2.2, which goes by the names of LLaDA2.1."""
    variant = golden_variant("llada2", tmp_path / "flash", {"expert_capacity": 48})
    with pytest.raises(UserError, match=r"to 48 experts \(expert_capacity\), as LLaDA2.2 does"):
        open_checkpoint(variant, 206)
    same = golden_variant("llada2", tmp_path / "mini", {"expert_capacity": None})
    assert open_checkpoint(same, 206).spec.family == "llada2"


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"No checkpoint folder `{tmp_path}/none`"):
        open_checkpoint(tmp_path / "none")


def test_a_mask_id_can_be_given(tmp_path: Path) -> None:
    folder = golden_variant("llada", tmp_path / "a", {"mask_token_id": None})
    assert open_checkpoint(folder, mask_id=7).spec.mask_id == 7
    assert open_checkpoint(GOLDEN / "llada", mask_id=7).spec.mask_id == 7  # it wins
    for wrong in (208, -1):
        with pytest.raises(UserError, match=f"mask_id is {wrong}, outside"):
            open_checkpoint(folder, mask_id=wrong)


# Weight values


def work_in(folder: Path) -> Work:
    folder.mkdir()
    return Work(folder)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_value_that_is_no_number_is_found(
    value: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    head = weights_of("llada")[LLADA_HEAD].to(dtype)
    head[17, 3] = head[200, 63] = value
    folder = golden_variant("llada", tmp_path / "a", tensors={LLADA_HEAD: head})
    checkpoint = open_checkpoint(folder)
    with pytest.raises(UserError, match="tensor `head` holds 2 values that are NaN or infinite"):
        check_weights(checkpoint, work_in(tmp_path / "work"), Progress())
    assert not list((tmp_path / "work").rglob("digest"))


def test_the_digest_is_that_of_content_and_configuration(tmp_path: Path) -> None:
    head = weights_of("llada")[LLADA_HEAD]
    head[17, 3] += 1e-3
    places = [
        shutil.copytree(GOLDEN / "llada", tmp_path / "same"),
        golden_variant("llada", tmp_path / "weight", tensors={LLADA_HEAD: head}),
        shutil.copytree(GOLDEN / "llada", tmp_path / "theta"),
    ]
    set_config(rope_theta=1e4)(places[2])
    work = work_in(tmp_path / "work")
    first = check_weights(golden("llada"), work, Progress())
    same, weight, theta = (check_weights(open_checkpoint(p), work, Progress()) for p in places)
    assert same == first
    assert len({first, weight, theta}) == 3


def test_a_file_is_looked_at_again_once_it_changed(tmp_path: Path) -> None:
    folder, work = golden_variant("llada", tmp_path / "a"), work_in(tmp_path / "work")
    check_weights(open_checkpoint(folder), work, Progress())
    head = weights_of("llada")[LLADA_HEAD]
    head[0, 0] = math.nan
    set_tensors(**{LLADA_HEAD.replace(".", "__"): head})(folder)
    os.utime(folder / "model.safetensors", ns=(1, 1))  # a time of its own on any file system
    with pytest.raises(UserError, match="NaN"):
        check_weights(open_checkpoint(folder), work, Progress())


# Nothing of a checkpoint is run


class Trap:
    """Unpickling this makes a file."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.sprung),)


def test_nothing_of_a_checkpoint_is_run(tmp_path: Path) -> None:
    folder, sprung = golden_variant("llada", tmp_path / "a"), tmp_path / "sprung"
    for name in ("pytorch_model.bin", "model.pt", "tokenizer.pkl"):
        (folder / name).write_bytes(pickle.dumps(Trap(sprung)))
    code = f"import os\nos.mkdir({str(sprung)!r})\n"
    for name in ("modeling_llada.py", "configuration_llada.py", "__init__.py", "conftest.py"):
        (folder / name).write_text(code)
    checkpoint = open_checkpoint(folder)
    check_weights(checkpoint, work_in(tmp_path / "work"), Progress())
    assert same_weights(checkpoint, golden("llada"))
    assert not sprung.exists()
    assert "modeling_llada" not in sys.modules
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists()  # the trap works
