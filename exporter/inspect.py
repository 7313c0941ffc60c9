"""Bundles, targets and recipes in words."""

import targets
from exporter import recipe_names
from exporter.manifest import Engines, GateResult, Manifest, Prediction


def describe(manifest: Manifest) -> str:
    """A bundle on one screen."""
    model = manifest.model
    size = sum(file.bytes for file in manifest.files)
    weights = sum(file.bytes for file in manifest.files if file.role == "weights")
    passes = list(dict.fromkeys(record.step for record in manifest.passes)) or ["none"]
    lines = [
        f"{model.name} ({model.family}), {model.parameters / 1e6:,.1f} M parameters, "
        f"{model.layers} blocks of width {model.width}",
        f"recipe      {manifest.recipe} for {manifest.target}, computing in {manifest.compute}",
        f"axes        {model.attention} attention, {'shifted' if model.shift else 'unshifted'} "
        f"logits, {model.corruption} corruption, blocks seeded by {model.block_seed}"
        f"{', committed causally' * (model.commit == 'causal')}",
        f"canvas      at most {model.max_length} tokens, {model.vocab_size} ids, "
        f"mask {model.mask_id}, eos {model.eos_id}",
        f"decoding    {manifest.decode.sampler}, {manifest.decode.gen_length} tokens, "
        f"blocks of {manifest.decode.block_length}",
        f"graphs      {', '.join(graph.name for graph in manifest.graphs)}",
        f"size        {size / 2**20:,.1f} MiB, of it weights {weights / 2**20:,.1f} MiB",
        *operator_lines(manifest),
        *attention_lines(manifest),
        *cache_lines(manifest),
        *engine_lines(manifest.engines),
        *prediction_lines(manifest.prediction),
        *(f"{'' if i else 'passes':12}{step}" for i, step in enumerate(passes)),
        *gate_lines(manifest.gate),
    ]
    return "\n".join(lines)


def operator_lines(manifest: Manifest) -> list[str]:
    """How many nodes of operators of our own a graph has, if any."""
    found = [f"{count} {name}" for name, count in manifest.operators.items()]
    return [f"operators   {', '.join(found)}"] if found else []


def attention_lines(manifest: Manifest) -> list[str]:
    """Which blocks have which arithmetic, where that was chosen block by block."""
    chosen = [record for record in manifest.passes if "chosen" in record.stats]
    found = []
    for number, name in enumerate(("integers", "float values", "floats")):
        blocks = [r.where.removeprefix("block ") for r in chosen if r.stats["chosen"] == number]
        if blocks:
            found.append(f"{name} in block{'s' * (len(blocks) > 1)} {', '.join(blocks)}")
    return [f"attention   {'; '.join(found)}"] if found else []


def cache_lines(manifest: Manifest) -> list[str]:
    """What keeping keys and values takes, if the bundle can."""
    if manifest.cache_bytes is None:
        return []
    most = manifest.cache_bytes * manifest.model.max_length
    return [
        f"cache       {manifest.cache_bytes / 2**10:,.1f} KiB a token, {most / 2**20:,.1f} MiB for "
        f"the longest canvas; under guidance twice that"
    ]


def engine_lines(engines: Engines | None) -> list[str]:
    """What engines there are, for which GPUs and shapes."""
    if engines is None:
        return []
    versions = sorted({f"{one.runtime} {one.version}" for one in engines.built})
    names = ", ".join(one.graph for one in engines.built) or "none yet"
    return [
        f"engines     {names}; SM {'/'.join(map(str, engines.sm))}, {engines.precision}, at most "
        f"{engines.batch} sequence{'s' * (engines.batch != 1)} at once",
        *(f"            built by {version}" for version in versions),
    ]


def prediction_lines(prediction: Prediction | None) -> list[str]:
    """What a forward pass takes at least on the target, if that is known."""
    if prediction is None:
        return []
    mode = f" in {prediction.power_mode}" if prediction.power_mode else ""
    rates = ", ".join(f"{rate:g} TOPS {kind}" for kind, rate in prediction.tops.items())
    return [
        f"floor       at {prediction.bandwidth_gb_s:g} GB/s, {rates}{mode}; no run is faster",
        *(
            f"            {one.graph}: {one.tokens} tokens on {one.canvas}, "
            f"{one.milliseconds:.3g} ms, bound by {one.bound}: {one.bytes / 1e9:.3g} GB, "
            f"{sum(one.operations.values()) / 1e12:.3g} T operations"
            for one in prediction.forwards
        ),
    ]


def gate_lines(gate: GateResult | None) -> list[str]:
    """The gate's figures, a few lines."""
    if gate is None:
        return ["gate        not run"]
    low, high = gate.argmax_interval
    cached = (
        []
        if gate.cached_agreement is None
        else [
            f"            cached agreement {gate.cached_agreement:.4f}: equal tokens with the"
            f" {gate.cache} cache, float without"
        ]
    )
    return [
        f"gate        {'passed' if gate.passed else 'FAILED'}: arg-max agreement "
        f"{gate.argmax_agreement:.4f} [{low:.4f}, {high:.4f}] on {gate.positions} positions",
        f"            regret {gate.regret:.2g} (at most {gate.largest_regret}), KL {gate.kl:.2g} "
        f"(at most {gate.largest_kl})",
        f"            equal tokens {gate.token_agreement:.4f}, equal answers "
        f"{gate.exact_match:.2f} of {gate.prompts}",
        *cached,
    ]


def target_rows() -> list[dict[str, str]]:
    """name, title, default recipe and what `build` does, one row a target."""
    found = [targets.load(name) for name in targets.names()]
    return [
        {"name": t.name, "title": t.title, "recipe": t.default_recipe, "build": t.build}
        for t in found
    ]


def recipe_rows() -> list[dict[str, str]]:
    """The parts that recipe names are made of: `<bits>[-<method>][+<component> ...]`."""
    rows: list[dict[str, str]] = []
    for bits, precision in recipe_names.BITS.items():
        stands_for = f"; dllmquant is {precision.default}" if bits.startswith("w") else ""
        rows.append({"name": bits, "about": precision.title + stands_for})
    rows += [{"name": f"-{name}", "about": about} for name, about in recipe_names.METHODS.items()]
    return rows + [
        {"name": f"+{n}", "about": about} for n, about in recipe_names.COMPONENTS.items()
    ]
