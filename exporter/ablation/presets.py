"""Lists of recipes that answer one question each."""

from collections.abc import Mapping

PARTS = ("tmas", "cgq", "iaaq")


def one_by_one(base: str) -> tuple[str, ...]:
    """`base`, with each component of DLLMQuant alone, all of them, and all but one."""
    alone = (f"{base}+{part}" for part in PARTS)
    left_out = ("+".join([base, *(p for p in PARTS if p != out)]) for out in PARTS)
    return (base, *alone, "+".join([base, *PARTS]), *left_out)


PRESETS: Mapping[str, tuple[str, ...]] = {
    "bits": ("w8a16-gptq", "w8a16", "w4a16-rtn", "w4a16-gptq", "w4a16", "w8a8-rtn", "w8a8-quarot",
             "w8a8", "w4a8-rtn", "w4a8-quarot", "w4a8", "w4a4-rtn", "w4a4-quarot+token",
             "w4a4-quarot", "w4a4"),
    "methods": ("w4a4-rtn+token", "w4a4-smoothquant+token", "w4a4-awq+token", "w4a4-gptq+token",
                "w4a4-quantease+token", "w4a4-lorc+token", "w4a4-omniquant+token",
                "w4a4-duquant+token", "w4a4-quarot+token", "w4a4-dllmquant+token"),
    "components": (*one_by_one("w4a4-quarot+token"), *one_by_one("w4a4-gptq+token")[:5],
                   *one_by_one("w4a4-awq+token")[:5]),
    "states": tuple(f"w4a4-quarot+token{states}" for states in ("", "+tmas", "+mcs", "+clean")),
}  # fmt: skip
QUESTIONS: Mapping[str, str] = {
    "bits": "how many bits cost how much",
    "methods": "which method is best at 4-bit weights and activations",
    "components": "what TMAS, CGQ and IA-AQ are worth, on three base methods",
    "states": "which states of decoding to calibrate on",
}
