"""manifest.json: all that there is to know of a bundle, and all that the emitted loop reads."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Role = Literal[
    "graph", "weights", "loop", "tokenizer", "reference", "report", "readme", "plugin", "engine"
]


def significant(value: float) -> float:
    """Six significant digits: what stays equal when sums are taken in another order."""
    return float(f"{value:.6g}")


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelFacts(Strict):
    """The model and its axes: attention, shift, corruption, block seed, commit."""

    family: str
    name: str
    checkpoint: str  # digest of configuration and weights
    parameters: int
    layers: int
    width: int
    attention: Literal["full", "block-causal"]
    block_length: int | None = None  # of a block-causal mask, in tokens
    shift: bool  # upstream; the graphs align it
    corruption: Literal["absorbing", "uniform"]
    block_seed: Literal["mask", "token"]
    commit: Literal["block", "causal"] = "block"  # causal: a pass of its own stores a filled block
    positions: Literal["absolute", "skip-padding"]
    vocab_size: int  # ids 0 … vocab_size − 1 can be read and predicted
    head_rows: int  # rows of the head, padding included
    max_length: int  # tokens of the longest canvas
    mask_id: int
    eos_id: int | None
    eot_id: int | None
    pad_id: int
    bos_id: int | None
    special_ids: list[int]  # columns of the graph input special_bias


class Decode(Strict):
    """Default decoding settings; the names are the options of decode.py."""

    sampler: str
    cache: str
    gen_length: int
    steps: int | None
    block_length: int
    threshold: float | None
    factor: float
    cfg_scale: float
    eps: float
    temperature: float
    top_k: int | None
    top_p: float | None
    alg_temp: float | None
    seed: int
    early_stop: bool
    eos_inf: bool
    confidence_eos_inf: bool
    low_threshold: float | None = None
    gamma: float | None = None
    radius: int = 4
    editing_threshold: float = 0.9
    max_post_steps: int = 16
    num_to_transfer: int = 1
    minimal_topk: int = 1
    sub_block_length: int = 8
    eos_early_stop: bool = False
    early_commit: bool = False
    max_forwards: int | None = None
    initial_length: int = 64
    growth: int = 8
    eos_threshold: float = 0.5
    eos_window: int = 32
    credit_alpha: float = 0.7
    credit_beta: float = 0.8
    credit_gamma: float = 0.2
    keep_threshold: float = 0.9


class Runtime(Strict):
    """How the graphs run."""

    name: Literal["onnxruntime"]
    providers: list[str]
    accuracy_level: int  # of MatMulNBits: 0 keeps activations as they are, 4 makes them 8-bit


class GraphFile(Strict):
    name: str
    path: str
    guided: bool
    outputs: list[str]
    cached: bool = False  # keys and values are kept between calls


Span = tuple[int, int, int]  # of an axis: least, best, most


class EnginePlan(Strict):
    """What the engine of one graph is built for."""

    graph: str
    path: str
    default: bool  # decoding with the bundle's defaults needs it
    profiles: list[dict[str, Span]]  # by the names of axes, one a range of lengths


class BuiltEngine(Strict):
    """An engine of the bundle: good for this version, these GPUs and this graph alone."""

    graph: str
    path: str
    sha256: str
    graph_sha256: str
    weights_sha256: str
    runtime: Literal["tensorrt", "tensorrt-rtx"]
    version: str
    sm: list[int]
    plugins: str | None = None  # digest of the plugins it was built with; None: it has none
    bytes: int | None = None  # of the file
    seconds: float | None = None  # that building it took


class Engines(Strict):
    """Engines of a runtime that has some: what can be built, and what was."""

    runtime: Literal["tensorrt", "tensorrt-rtx"]
    sm: list[int]
    precision: Literal["fp32", "fp16"]  # of float arithmetic; the network is strongly typed
    batch: int  # sequences at once, at most
    plans: list[EnginePlan]
    plugins: str | None = None  # digest of the plugins' sources, where graphs have nodes of ours
    built: list[BuiltEngine] = []


class PredictedForward(Strict):
    """The floor of one forward pass of one sequence: see predict.py."""

    graph: str
    tokens: int  # fed
    canvas: int
    bytes: int  # from and to memory, at least
    operations: dict[str, int]  # of matrix products, by arithmetic; a multiply-add is two
    milliseconds: float
    bound: Literal["memory", "arithmetic"]  # what most of them are spent on


class Prediction(Strict):
    """Floors by bandwidth and rates of the target."""

    bandwidth_gb_s: float
    tops: dict[str, float]  # 1e12 operations a second
    power_mode: str | None  # in which the board has these
    forwards: list[PredictedForward]


class PassRecord(Strict):
    """One pass as it ran: `step` is its repr, so all settings are on record."""

    step: str
    where: str
    stats: dict[str, float]


class Calibration(Strict):
    prompts: int
    source: str  # of the prompts
    settings: Decode  # of the roll-out
    states: str  # digest of the chosen states
    counts: dict[str, float]


class GateResult(Strict):
    """The emitted bundle against the float model on held-out prompts; see gate.py."""

    passed: bool
    provider: str  # of ONNX Runtime, that ran the bundle
    prompts: int
    tokens: int  # generated by each side
    token_agreement: float
    exact_match: float  # share of prompts with equal answers
    first_divergence: float  # mean step of the first difference, as share of the steps; 1: none
    positions: int  # about to be committed, over all states of the float trajectories
    argmax_agreement: float
    argmax_interval: tuple[float, float]  # 95 %, Wilson
    by_mask_ratio: list[tuple[int, float]]  # (positions, agreement) from all masked to none
    regret: float  # mean float probability of the float choice, minus that of the bundle's choice
    kl: float  # mean over positions, nats, at least this much
    largest_regret: float  # what the recipe allows
    largest_kl: float
    cache: str | None = None  # one that changes answers and is the bundle's default
    cached_agreement: float | None = None  # token agreement with the float model, decoding with it


class Tuned(Strict):
    """What `dqexport tune` found; `decode` of the manifest are the settings that it chose."""

    tasks: str  # names of the task files
    prompts: int  # that have an answer
    accuracy: float
    accuracy_before: float
    interval: tuple[float, float]  # of the difference, 95 %, prompts compared pairwise
    speedup: float  # of an answer decoded alone, on the machine that tuned
    forwards: float  # a prompt
    forwards_before: float
    before: Decode  # what the bundle was built and gated with


class File(Strict):
    path: str
    role: Role
    bytes: int
    sha256: str


class Manifest(Strict):
    format: Literal[1] = 1
    made_by: str
    recipe: str
    model: ModelFacts
    target: str
    compute: Literal["fp32", "fp16"]
    decode: Decode
    runtime: Runtime
    graphs: list[GraphFile]
    operators: dict[str, int] = {}  # of our own: how many nodes of each a graph has at most
    engines: Engines | None = None  # None: the runtime reads the graphs themselves
    cache_bytes: int | None = None  # of a position of one sequence, in the buffers of cached graphs
    prediction: Prediction | None = None  # None: bandwidth or rates of the target are not known
    calibration: Calibration | None
    passes: list[PassRecord]
    gate: GateResult | None
    tuned: Tuned | None = None
    files: list[File]

    @property
    def gated(self) -> Decode:
        """The decoding settings that the gate is about."""
        return self.decode if self.tuned is None else self.tuned.before
