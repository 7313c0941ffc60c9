"""What is known of a model (`Spec`), and what a row of the table of families says.

What is computed from it stands in `model.py` and `graph.py`, which ask for the properties below and
never for a family's name. The rows are in `family_table.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Json = Mapping[str, object]


@dataclass(frozen=True)
class Experts:
    """How the MLP of some blocks is divided into experts, and how a token finds its own."""

    blocks: tuple[bool, ...]  # which blocks have experts; the others are dense
    count: int
    per_token: int
    width: int  # of the MLP of one expert
    shared_width: int  # of the expert that all tokens go through; 0: none
    score: Literal["softmax", "sigmoid"]  # of the router's logits, over all experts
    selection_bias: bool  # an expert has a bias, in the selection alone
    groups: int  # experts are chosen within the best of so many groups; 1: among all
    top_groups: int  # that many; a group is as good as its two best experts together
    renormalize: bool  # the scores of the chosen experts are divided by their sum
    scale: float  # what routed outputs are multiplied by


@dataclass(frozen=True)
class Yarn:
    """Rotary frequencies that reach over longer texts (YaRN, arXiv 2309.00071, section 3.2).

    Channels that turn more than `beta_fast` times in `length` positions keep their frequency, those
    that turn less than `beta_slow` times have it divided by `factor`, in between it is a mixture.
    """

    factor: float
    length: int  # positions before the stretch
    beta_fast: float
    beta_slow: float
    scale: float  # of cosines and sines: the attention factor


@dataclass(frozen=True)
class QueryScale:
    """Llama 4's temperature of attention in long texts.

    Queries behind the rotary embedding are multiplied by 1 + beta ln(1 + floor(position / length)).
    """

    beta: float
    length: int


@dataclass(frozen=True)
class Spec:
    """All facts about one model that the float model, the graphs and the decode loop need."""

    family: str
    layers: int
    width: int  # D
    heads: int  # H, query heads
    kv_heads: int
    head_dim: int  # K
    mlp_width: int
    vocab_size: int  # rows of the head, padding rows included
    max_length: int  # positions that the model was trained for
    norm_eps: float
    rope_theta: float
    qkv_bias: bool
    qk_norm: bool  # RMSNorm per head on queries and keys, before the rotary embedding
    tied: bool  # the head is the embedding
    rotary_share: float  # of the channels of a head; the rotary embedding turns the first of them
    attention: Literal["full", "block-causal"]
    block_length: int | None  # of a block-causal mask, in tokens
    shift: bool  # row i of the logits predicts position i + 1
    corruption: Literal["absorbing", "uniform"]
    block_seed: Literal["mask", "token"]
    positions: Literal["absolute", "skip-padding"]  # skip-padding: left padding does not count
    mask_id: int
    eos_id: int | None
    eot_id: int | None
    pad_id: int
    bos_id: int | None
    experts: Experts | None = None
    commit: Literal["block", "causal"] = "block"  # see `commits_causally`
    yarn: Yarn | None = None
    query_scale: QueryScale | None = None

    @property
    def commits_causally(self) -> bool:
        """Whether finished blocks are stored by a causal pass, which also seeds the next block.

        Such a model sees its block both ways while it fills it; everything before the block has
        seen only what stood before it. Elsewhere what is stored has seen its whole block.
        """
        return self.commit == "causal"

    @property
    def can_cast_shadow(self) -> bool:
        """Whether tokens can be predicted without seeing themselves (runtime/shadow.py)."""
        return self.attention == "full" and not self.shift

    @property
    def rotary_dim(self) -> int:
        """Channels of a head that the rotary embedding turns."""
        return int(self.head_dim * self.rotary_share)

    def has_experts(self, block: int) -> bool:
        """Whether a router leads the tokens of a block to experts."""
        return self.experts is not None and self.experts.blocks[block]

    @property
    def special_ids(self) -> list[int]:
        """End-of-text ids whose logits the decode loop can bias: eos, then eot."""
        return [i for i in (self.eos_id, self.eot_id) if i is not None]


def block_shapes(spec: Spec, index: int) -> dict[str, tuple[int, ...]]:
    """Our names and shapes of the tensors of block `index`; linears are (out, in)."""
    d, q, kv = spec.width, spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm": (d,),
        "q": (q, d),
        "k": (kv, d),
        "v": (kv, d),
        "o": (d, q),
        "mlp_norm": (d,),
    }
    if spec.qkv_bias:
        shapes |= {"q_bias": (q,), "k_bias": (kv,), "v_bias": (kv,)}
    if spec.qk_norm:
        shapes |= {"q_norm": (spec.head_dim,), "k_norm": (spec.head_dim,)}
    experts = spec.experts
    if experts is None or not experts.blocks[index]:
        return shapes | _mlp_shapes("{}", d, spec.mlp_width)
    shapes["router"] = (experts.count, d)
    if experts.selection_bias:
        shapes["expert_bias"] = (experts.count,)
    if experts.shared_width:
        shapes |= _mlp_shapes("shared_{}", d, experts.shared_width)
    for number in range(experts.count):
        shapes |= _mlp_shapes(f"{{}}_{number}", d, experts.width)
    return shapes


def _mlp_shapes(name: str, d: int, width: int) -> dict[str, tuple[int, ...]]:
    """A gated MLP whose linears are called by the pattern `name`."""
    return {
        name.format("gate"): (width, d),
        name.format("up"): (width, d),
        name.format("down"): (d, width),
    }


def model_shapes(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Our keys and shapes of all tensors of a model."""
    outer = {"embed": (spec.vocab_size, spec.width), "final_norm": (spec.width,)}
    if not spec.tied:
        outer["head"] = (spec.vocab_size, spec.width)
    blocks = {
        f"{i}.{name}": shape
        for i in range(spec.layers)
        for name, shape in block_shapes(spec, i).items()
    }
    return {**outer, **blocks}


@dataclass(frozen=True)
class Router:
    """What a row of the table says about experts. `keys` maps a field of `Experts` to its key."""

    keys: Mapping[str, str]
    score: Literal["softmax", "sigmoid"]
    dense: str  # upstream key that tells which blocks are dense
    dense_is: Literal["count", "flags", "places"]  # the first n; 0 or 1 for each block; a list
    renormalize: bool | str  # or the upstream key that tells
    selection_bias: bool = False
    shared: str | None = None  # upstream key: how many experts all tokens go through


@dataclass(frozen=True)
class Family:
    """One row of the table. `keys` maps a field of `Spec` to the upstream configuration key.

    A key inside a table is written `table.key`.

    `tensors` maps our name to the upstream one, with `{i}` for the block and `{e}` for the expert.
    Where names share an upstream tensor, it holds their rows in the order of `block_shapes`.
    """

    name: str
    model_type: str
    architectures: tuple[str, ...]
    keys: Mapping[str, str]
    tensors: Mapping[str, str]
    required: Mapping[
        str, tuple[object, ...]
    ]  # upstream key -> values that we compute; absent is fine
    also: tuple[str, ...] = ()  # other model types that its architectures go by
    attention: Literal["full", "block-causal"] = "full"
    either: bool = False  # full, and block-causal where a block length is given
    block_length: int | None = None  # where the configuration does not tell, with block-causal
    shift: bool = False
    corruption: Literal["absorbing", "uniform"] = "absorbing"
    block_seed: Literal["mask", "token"] = "mask"
    commit: Literal["block", "causal"] = "block"
    positions: Literal["absolute", "skip-padding"] = "absolute"
    rope: str | None = None  # upstream key of a table with YaRN's numbers and the query scale
    mask_id: int | None = None  # where neither configuration nor tokenizer tell
    qkv_bias: bool | str = False  # or the upstream key that tells
    qk_norm: bool = False
    eot_token: str | None = None  # text of the end-of-turn token in the tokenizer
    sampler: str = "low-confidence"  # what the upstream loop decodes with by default
    decode: Mapping[str, object] = field(default_factory=dict)  # other upstream decoding defaults
    experts: Router | None = None

    def upstream_name(self, block: str, name: str) -> str:
        """What upstream calls our tensor `name` of a block ("": of none)."""
        base, _, number = name.rpartition("_")
        if not number.isdigit():
            return self.tensors[name].format(i=block)
        return self.tensors[f"{base}_{{e}}"].format(i=block, e=number)
