"""How the literature on quantized diffusion models runs the usual tasks.

"Quantization Meets dLLMs" (arXiv 2508.14896) with the code of FelixMessi/QDLM: low-confidence
decoding at temperature 0 without guidance; likelihoods by Monte Carlo.
"""

from dataclasses import dataclass

from exporter.evaluation.likelihood import MonteCarlo


@dataclass(frozen=True)
class Preset:
    """Settings of one task; those that it has no use for are None."""

    few_shot: int = 0
    gen_length: int | None = None
    steps: int | None = None
    block_length: int | None = None
    draws: int | None = None  # of the likelihood


LIKELIHOOD = Preset(draws=MonteCarlo.draws)
PRESETS = {
    "gsm8k": Preset(4, 256, 256, 32),
    "minerva_math": Preset(0, 256, 256, 64),
    "humaneval": Preset(0, 512, 512, 32),
    "mbpp": Preset(3, 512, 512, 32),
    "hellaswag": LIKELIHOOD,
    "piqa": LIKELIHOOD,
    "winogrande": LIKELIHOOD,
    "arc_easy": LIKELIHOOD,
    "arc_challenge": LIKELIHOOD,
    "mmlu": Preset(5, draws=1),
}


def preset(task: str) -> Preset | None:
    """Of a task or of one of its parts (`mmlu_anatomy`); None for a task that is unknown here."""
    names = (name for name in PRESETS if task == name or task.startswith(f"{name}_"))
    return next((PRESETS[name] for name in names), None)
