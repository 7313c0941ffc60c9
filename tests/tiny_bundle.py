"""A bundle whose model is a few matrix products: ONNX graphs by the contract, and a numpy twin.

Ids 0-255 are the bytes of text, then mask, end of text, end of turn, padding, and unused rows.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper, parser
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from exporter import runtime
from exporter.runtime.bundle import ModelFacts
from exporter.runtime.session import Bools, Cache, Ints, Reductions
from exporter.runtime.settings import Settings
from tests.numpy_model import TokenCache, reduce

MASK, EOS, EOT, PAD, V, D, TOP = 256, 257, 258, 259, 264, 8, 16
FACTS = ModelFacts(
    family="llada",
    name="tiny",
    attention="full",
    shift=False,
    corruption="absorbing",
    block_seed="mask",
    vocab_size=V,
    max_length=64,
    mask_id=MASK,
    eos_id=EOS,
    eot_id=EOT,
    pad_id=PAD,
    special_ids=(EOS, EOT),
)
DECODE = Settings(gen_length=16, block_length=8)
BASE = ("id1", "l1", "rest")
SAMPLE = (*BASE, "l2", "rest_t", "entropy", "topk_ids", "topk_logits", "l_held")

HEAD = """<ir_version: 10, opset_import: ["" : 21]>
tiny (int64[B,S] input_ids, bool[B,S] key_mask, int64[W] window, float[2,E] special_bias{extra})
  => ({outputs})
  <int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] k = {{16}},
   int64 start = {{0}}, int64 step = {{1}}> {{
  keep = Cast<to = 1>(key_mask)
  keep3 = Unsqueeze(keep, two)
  embedded = Gather(table, input_ids)
  sum = ReduceSum(embedded_kept, one)
  context = Div(sum, count)
  length1 = Shape<start = 1>(input_ids)
  length = Squeeze(length1, zero)
  range = Range(start, length, step)
  place = Gather(places, range)
  here = Add(embedded, place)
  mixed = Mul(here, context)
  rows = Gather<axis = 1>(mixed, window)
  raw = MatMul(rows, head)
  {combine}
  biases = MatMul(special_bias, special)
  b0 = Gather(biases, zero)
  b1 = Gather(biases, one)
  plain = Add(combined, suppress)
  logits = Add(plain, b0)
  topk_logits, topk_ids = TopK(logits, k)
  l1w = Gather<axis = 2>(topk_logits, zero)
  id1w = Gather<axis = 2>(topk_ids, zero)
  l1 = Squeeze(l1w, two)
  id1 = Squeeze(id1w, two)
  gap0 = Sub(logits, l1w)
  gap = Add(gap0, b1)
  odds = Exp(gap)
  none = Sub(l1w, l1w)
  others = ScatterElements<axis = 2>(odds, id1w, none)
  rest = ReduceSum<keepdims = 0>(others, two)
  {sample}
}}"""
SAMPLED = """
  l2w = Gather<axis = 2>(topk_logits, one)
  l2 = Squeeze(l2w, two)
  gap_t = Div(gap, temperature)
  odds_t = Exp(gap_t)
  others_t = ScatterElements<axis = 2>(odds_t, id1w, none)
  rest_t = ReduceSum<keepdims = 0>(others_t, two)
  p = Softmax(gap)
  log_p = LogSoftmax(gap)
  plogp = Mul(p, log_p)
  minus = ReduceSum<keepdims = 0>(plogp, two)
  entropy = Neg(minus)
  held = Gather<axis = 1>(input_ids, window)
  held_w = Unsqueeze(held, two)
  l_held_w = GatherElements<axis = 2>(logits, held_w)
  l_held = Squeeze(l_held_w, two)"""
GUIDED = """c, u = Split<axis = 0, num_outputs = 2>(raw)
  difference = Sub(c, u)
  more = Add(cfg_scale, float_one)
  scaled = Mul(difference, more)
  combined = Add(u, scaled)"""
TYPES = {"id1": "int64[B,W]", "topk_ids": "int64[B,W,K]", "topk_logits": "float[B,W,K]"}


def weights() -> dict[str, npt.NDArray[np.float32]]:
    """The constants of the model, float32."""
    rng = np.random.default_rng(0)
    special = np.zeros((2, V), np.float32)
    special[0, EOS] = special[1, EOT] = 1
    suppress = np.zeros(V, np.float32)
    suppress[MASK] = suppress[PAD:] = -1e4
    return {
        "table": rng.standard_normal((V, D), np.float32),
        "places": rng.standard_normal((64, D), np.float32),
        "head": 4 * rng.standard_normal((D, V), np.float32),
        "special": special,
        "suppress": suppress,
        "float_one": np.ones(1, np.float32),
    }


def graph(guided: bool, outputs: tuple[str, ...]) -> onnx.ModelProto:
    """One graph of the contract."""
    sampled = "rest_t" in outputs
    text = HEAD.format(
        extra=", float[1] cfg_scale" * guided + ", float[1] temperature" * sampled,
        outputs=", ".join(f"{TYPES.get(n, 'float[B,W]')} {n}" for n in outputs),
        combine=GUIDED if guided else "combined = Identity(raw)",
        sample=SAMPLED if sampled else "",
    ).replace(
        "sum = ReduceSum(embedded_kept, one)",
        "embedded_kept = Mul(embedded, keep3)\n  sum = ReduceSum(embedded_kept, one)\n"
        "  count = ReduceSum(keep3, one)",
    )
    model = parser.parse_model(text)
    for name, array in weights().items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.checker.check_model(model)
    return model


@dataclass
class Twin:
    """The same model in numpy, float64: a `Session`."""

    def forward(
        self,
        ids: Ints,
        key_mask: Bools,
        window: Ints,
        special_bias: npt.NDArray[np.float32],
        cfg_scale: float | None,
        temperature: float | None,
        wanted: frozenset[str],
        cache: Cache | None = None,
        start: int = 0,
        causal: bool = False,
        shadow: Ints | None = None,
    ) -> Reductions:
        """See exporter/runtime/session.py; K is the vocabulary."""
        assert cache is None or isinstance(cache, TokenCache)
        ids = ids if cache is None else cache.feed(ids, start)
        w = {name: array.astype(np.float64) for name, array in weights().items()}
        keep = key_mask[..., None].astype(np.float64)
        embedded = w["table"][ids]
        context = (embedded * keep).sum(1, keepdims=True) / keep.sum(1, keepdims=True)
        raw = ((embedded + w["places"][: ids.shape[1]]) * context)[:, window] @ w["head"]
        if cfg_scale is not None:
            c, u = np.split(raw, 2)
            raw = u + (cfg_scale + 1) * (c - u)
        bias = special_bias.astype(np.float64) @ w["special"]
        held = ids[: len(raw), window]
        return reduce(raw + w["suppress"] + bias[0], bias[1], temperature or 1.0, held)

    def new_cache(self, rows: int, length: int) -> TokenCache:
        return TokenCache(np.zeros((rows, length), np.int64))


def manifest() -> dict[str, Any]:
    """manifest.json of the tiny bundle."""
    return {
        "format": 1,
        "model": asdict(FACTS),
        "decode": asdict(DECODE),
        "runtime": {
            "name": "onnxruntime",
            "providers": ["CPUExecutionProvider"],
            "accuracy_level": 0,
        },
        "graphs": [
            {"name": name, "path": f"graphs/{name}.onnx", "guided": guided, "outputs": outputs}
            for name, guided, outputs in (
                ("full", False, BASE),
                ("full-guided", True, BASE),
                ("sample", False, SAMPLE),
            )
        ],
    }


def write_bundle(folder: Path) -> None:
    """Write the whole bundle, with a tokenizer whose tokens are bytes."""
    facts = manifest()
    (folder / "graphs").mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(facts))
    for entry in facts["graphs"]:
        onnx.save(graph(entry["guided"], entry["outputs"]), folder / entry["path"])
    source = Path(runtime.__file__).parent
    shutil.copytree(source, folder / "runtime", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(source / "decode.py", folder / "decode.py")
    write_tokenizer(folder / "tokenizer")


def write_tokenizer(folder: Path) -> None:
    """tokenizer.json: one token a byte, and the special ids."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|mask|>", "<|end|>", "<|turn|>", "<|pad|>"])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
