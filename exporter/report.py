"""report.html: one self-contained page on what was built and how close it is to the float model."""

from html import escape
from pathlib import Path

from exporter.manifest import Engines, GateResult, Manifest

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #1b1f24; background: #fff; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.sub { color: #57606a; margin-top: .2rem; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .3rem .6rem;
       border-bottom: 1px solid #d8dee4; vertical-align: top; } th { color: #57606a;
       font-weight: 600; } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0; }
.card { border: 1px solid #d8dee4; border-radius: 8px; padding: .7rem 1rem; min-width: 9rem; }
.card b { display: block; font-size: 1.35rem; } .card span { color: #57606a; font-size: .85rem; }
.ok { color: #1a7f37; } .bad { color: #cf222e; } code { background: #f3f4f6; padding: 0 .25rem; }
.bar { fill: #54aeff; } .rtn { fill: #d0d7de; }
"""


def write(folder: Path, manifest: Manifest) -> None:
    """Write FOLDER/report.html and FOLDER/README.md."""
    (folder / "report.html").write_text(html(manifest), encoding="utf-8")
    (folder / "README.md").write_text(readme(manifest), encoding="utf-8")


def html(manifest: Manifest) -> str:
    """The whole page."""
    model, title = manifest.model, escape(f"{manifest.model.name} · {manifest.recipe}")
    facts = (
        f"{model.family} model of {model.parameters / 1e6:,.1f} M parameters, {model.layers} "
        f"blocks of width {model.width}, for target {manifest.target}, made by {manifest.made_by}"
    )
    parts = [
        f"<h1>{title}</h1><p class=sub>{escape(facts)}</p>",
        _gate(manifest.gate, manifest.engines is not None) if manifest.gate else "",
        _quantization(manifest),
        _calibration(manifest),
        _decoding(manifest),
        _passes(manifest),
    ]
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
        f"<style>{STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )


def _card(value: str, label: str, kind: str = "") -> str:
    return (
        f"<div class=card><b class='{kind}'>{escape(value)}</b><span>{escape(label)}</span></div>"
    )


def _table(head: list[str], rows: list[list[str]], numeric: int) -> str:
    """A table whose columns from `numeric` on are numbers."""

    def line(cells: list[str], tag: str) -> str:
        marks = [" class=n" if i >= numeric else "" for i in range(len(cells))]
        return "".join(f"<{tag}{m}>{c}</{tag}>" for m, c in zip(marks, cells, strict=True))

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f"<table><tr>{line(head, 'th')}</tr>{body}</table>"


def _gate(gate: GateResult, engines: bool) -> str:
    verdict = ("passed", "ok") if gate.passed else ("failed", "bad")
    low, high = gate.argmax_interval
    cards = [
        _card(verdict[0], "gate", verdict[1]),
        _card(f"{gate.argmax_agreement:.2%}", f"arg-max agreement ({low:.1%} to {high:.1%})"),
        _card(f"{gate.regret:.2g}", f"probability given up (at most {gate.largest_regret})"),
        _card(f"{gate.kl:.2g}", f"KL divergence, nats (at most {gate.largest_kl})"),
        _card(f"{gate.token_agreement:.2%}", "equal tokens, decoding freely"),
        _card(f"{gate.exact_match:.0%}", f"equal answers of {gate.prompts} prompts"),
        _card(f"{gate.first_divergence:.0%}", "of the calls until token or order differ"),
    ]
    if gate.cached_agreement is not None:
        share = f"{gate.cached_agreement:.2%}"
        cards.append(_card(share, f"equal tokens with the {gate.cache} cache, float without"))
    names = ["1 to ¾ masked", "¾ to ½", "½ to ¼", "¼ to none"]
    rows = [
        [name, str(count), f"{share:.2%}" if count else "–"]
        for name, (count, share) in zip(names, gate.by_mask_ratio, strict=True)
    ]
    note = (
        "Compared with the float model on held-out prompts, at the positions that it commits next. "
        f"The bundle ran on {gate.provider}"
        + (" of ONNX Runtime, on the graphs that the engines are made of." if engines else ".")
    )
    return (
        f"<div class=cards>{''.join(cards)}</div><p>{escape(note)}</p>"
        f"<h2>By mask ratio</h2>{_table(['state', 'positions', 'agreement'], rows, 1)}"
    )


def _quantization(manifest: Manifest) -> str:
    """Output error of each block, ours against rounding to nearest."""
    compared = [p for p in manifest.passes if {"error", "rtn_error"} <= p.stats.keys()]
    blocks = list({p.where: p for p in compared}.values())  # the last pass of each: its quantizer
    if not any(p.stats["rtn_error"] for p in blocks):
        return ""
    top = max(max(p.stats["error"], p.stats["rtn_error"]) for p in blocks) or 1.0
    bars = []
    for i, p in enumerate(blocks):
        for j, (name, kind) in enumerate((("rtn_error", "rtn"), ("error", "bar"))):
            height = 120 * p.stats[name] / top
            bars.append(
                f"<rect class={kind} x={i * 24 + j * 10} y={120 - height:.1f} width=9 "
                f"height={height:.1f}><title>{p.where}: {name} {p.stats[name]:.2e}</title></rect>"
            )
    width = len(blocks) * 24
    ours = sum(p.stats["error"] for p in blocks) / sum(p.stats["rtn_error"] for p in blocks)
    return (
        "<h2>Quantization error by block</h2><p>Relative output error of the linears on the "
        f"calibration tokens; grey is rounding to nearest. Ours is {ours:.2f} of it.</p>"
        f"<svg width='{width}' height=122 viewBox='0 0 {width} 122'>{''.join(bars)}</svg>"
    )


def _calibration(manifest: Manifest) -> str:
    c = manifest.calibration
    if c is None:
        return "<h2>Calibration</h2><p>None: the recipe needs no data.</p>"
    steps = c.settings.steps or c.settings.gen_length
    text = (
        f"{c.prompts} prompts ({c.source}), rolled out with {c.settings.sampler} in {steps} steps "
        f"of {c.settings.gen_length} tokens; states {c.states[:16]}…"
    )
    counts = dict(c.counts)
    bins = [str(b) for b in range(len(counts)) if f"wanted_{b}" in counts]
    by_bin = [
        [b, *(f"{counts.pop(f'{name}_{b}'):g}" for name in ("wanted", "available", "taken"))]
        for b in bins
    ]
    tables = _table(["bin", "wanted", "available", "taken"], by_bin, 1) if by_bin else ""
    tables += _table(["number", "value"], [[escape(k), f"{v:g}"] for k, v in counts.items()], 1)
    return f"<h2>Calibration</h2><p>{escape(text)}</p>{tables}"


def _decoding(manifest: Manifest) -> str:
    rows = [[escape(k), escape(str(v))] for k, v in manifest.decode.model_dump().items()]
    sizes = [[escape(f.path), f.role, f"{f.bytes:,}"] for f in manifest.files if f.bytes > 1 << 16]
    large = f"<h2>Large files</h2>{_table(['file', 'role', 'bytes'], sizes, 2)}" if sizes else ""
    return f"<h2>Decoding defaults</h2>{_table(['option', 'value'], rows, 1)}{large}"


def _passes(manifest: Manifest) -> str:
    rows = [
        [
            escape(p.where),
            f"<code>{escape(p.step)}</code>",
            escape(", ".join(f"{k} {v:.3g}" for k, v in p.stats.items() if "_error" not in k)),
        ]
        for p in manifest.passes
        if p.where != "calibration"
    ]
    return f"<h2>Passes</h2>{_table(['where', 'pass', 'numbers'], rows, 3)}" if rows else ""


def readme(manifest: Manifest) -> str:
    """How to use the bundle, for somebody who finds it on a device."""
    gate = manifest.gate
    closeness = (
        f"On {gate.prompts} held-out prompts its arg-max agrees with the float model on "
        f"{gate.argmax_agreement:.2%} of the positions about to be committed.\n"
        if gate
        else ""
    )
    return f"""# {manifest.model.name}, {manifest.recipe}

A diffusion language model, ready to decode: ONNX graphs, weights, tokenizer and loop.
Built for `{manifest.target}` by {manifest.made_by}. {closeness}
{_first_steps(manifest.engines)}
`manifest.json` describes every file and every pass; `report.html` shows how close the model is to
its float original. `dqexport verify` on this folder checks each byte and measures again.
"""


def _first_steps(engines: Engines | None) -> str:
    """Commands that lead from the folder to an answer."""
    decode = '    python decode.py --prompt "…"\n    python decode.py --help\n'
    if engines is None:
        return f"    pip install numpy onnxruntime tokenizers jinja2\n{decode}"
    gpus = f"a GPU of SM {'/'.join(map(str, engines.sm))}"
    packages = "    pip install numpy cuda-python tokenizers jinja2"
    if engines.built:
        start = f"`engines/` is for {gpus}; `python build_engine.py --graph NAME` adds another."
        version = engines.built[0].version  # no other can read them
        packages += "".join(
            f" tensorrt-rtx-cu13-{part}=={version}" for part in ("bindings", "libs")
        )
    else:
        start = f"On a machine with {gpus} and TensorRT's Python module:"
        packages += "\n    python build_engine.py"
    program = f"python plugins/trt_plugins/build.py --sm {engines.sm[0]}"
    plugins = (
        "\nThe graphs have operators of our own, sources in `plugins/`. Where no library\n"
        f"of them is there yet `{program}` compiles it, with nvcc.\n"
        if engines.plugins
        else ""
    )
    otherwise = (
        "\n`cuda-python` is to be of the CUDA that is installed, 12 (JetPack 6) or 13. Without an\n"
        "engine `decode.py` runs the graphs on ONNX Runtime, where that is installed.\n"
    )
    return f"{start}\n\n{packages}\n{decode}{plugins}{otherwise}"
