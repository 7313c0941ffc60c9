"""What contestants in attention on GPUs keep, move and multiply, and on which shapes."""

from dataclasses import dataclass

from tools.gpu_machine import Machine

WIDTH = 128  # channels of a head
BASE = "SDPA flash, bf16"


@dataclass(frozen=True)
class Shape:
    """Of one call."""

    batch: int
    queries: int
    keys: int
    heads: int
    kv_heads: int

    @property
    def title(self) -> str:
        return (
            f"B {self.batch}, Q {self.queries}, S {self.keys}, {self.heads}/{self.kv_heads} heads"
        )


# whole canvases and blocks of 32, LLaDA's heads and Dream's: the middle ones first
SHAPES = tuple(
    Shape(batch, keys if whole else 32, keys, heads, kv_heads)
    for keys in (1024, 4096, 256, 2048, 512)
    for batch in (1, 4)
    for whole in (True, False)
    for heads, kv_heads in ((32, 32), (28, 4))
)


@dataclass(frozen=True)
class Form:
    """What a contestant keeps of a key and its value, and what it multiplies."""

    name: str
    k_bits: int = 16
    v_bits: int = 16
    integer_scores: bool = False
    integer_values: bool = False
    cached: bool = False  # reads codes from a cache; others round keys and values in the call
    ours: bool = False

    def kept(self) -> float:
        """Bytes a token and key head, scales of keys included."""
        return WIDTH * (self.k_bits + self.v_bits) / 8 + (2 if self.k_bits < 16 else 0)

    def bytes_moved(self, shape: Shape) -> float:
        """q, y, keys and values once, two bytes a number, or what a cache keeps of them; of a
        cache also what is fed and written; who sees whom.
        """
        outside = 4 * shape.batch * shape.queries * shape.heads * WIDTH
        vectors = shape.batch * shape.kv_heads
        if self.cached:
            fed = shape.queries * (4 * WIDTH + self.kept())
            return outside + vectors * (shape.keys * self.kept() + fed)
        seen = shape.batch * shape.queries * shape.keys if self.ours else 0
        return outside + vectors * shape.keys * 4 * WIDTH + seen


FORMS = (
    Form(BASE),
    Form("SDPA cuDNN, bf16"),
    Form("SageAttention", integer_scores=True),
    Form("Triton, 8 bits", integer_scores=True, integer_values=True),
    Form("8 bits", integer_scores=True, integer_values=True, ours=True),
    Form("8 bits, P·V in fp16", integer_scores=True, ours=True),
    Form("cache of 8 bits", 8, 8, True, True, True, ours=True),
    Form("cache of 4 bits", 4, 4, True, True, True, ours=True),
    Form("cache of 8 bits, P·V in fp16", 8, 16, True, False, True, ours=True),
)
NAMED = {form.name: form for form in FORMS}


def floor(machine: Machine, form: Form, shape: Shape) -> tuple[float, float]:
    """Seconds that the bytes take at least, and both products."""
    each = shape.batch * shape.heads * shape.queries * shape.keys * WIDTH
    rates = (machine.int8 if integers else machine.halves
             for integers in (form.integer_scores, form.integer_values))  # fmt: skip
    return form.bytes_moved(shape) / machine.bandwidth, sum(each / rate for rate in rates)
