"""The pipeline, from a checkpoint to a verified bundle. It reads top to bottom."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from exporter import emit, engines, report
from exporter.alternatives import alternatives
from exporter.checkpoint import check_weights, open_checkpoint
from exporter.decoding import (
    DecodeOptions,
    comparable,
    default_settings,
    describe_model,
    longest_canvas,
    loop_facts,
)
from exporter.engine_plans import plan_engines
from exporter.errors import UserError
from exporter.float_decode import record_reference
from exporter.float_session import FloatModel
from exporter.gate import measure
from exporter.graph_kind import graph_kinds
from exporter.graph_rules import rules_of
from exporter.manifest import GateResult, Manifest
from exporter.memory import return_large_blocks
from exporter.operator_use import needs_plugins, operator_use
from exporter.planner import cache_bytes, check_fits, estimate
from exporter.predict import predict
from exporter.preflight import (
    check_accuracy,
    check_formats,
    check_lengths,
    check_output,
    count_engines,
    load_target,
)
from exporter.progress import Progress
from exporter.prompts import read_prompts, used_vocabulary
from exporter.quant_options import QuantOptions
from exporter.recipes import make_recipe
from exporter.run_recipe import run_recipe
from exporter.tasks import reference_folder
from exporter.team import device_of, open_team
from exporter.work import open_work

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildOptions:
    """Everything that `dqexport build` can be told beside checkpoint, target and output."""

    recipe: str | None = None  # None: the target's default
    quant: QuantOptions = field(default_factory=QuantOptions)
    decode: DecodeOptions = field(default_factory=DecodeOptions)
    mask_id: int | None = None
    eot_id: int | None = None
    attention_block: int | None = None  # tokens of a block-causal mask, where config.json is silent
    family: str | None = None  # of family_table.py, where config.json calls the model otherwise
    calib: Path | None = None  # .jsonl or .txt; None: the reference tasks
    calib_prompts: int = 128
    gate_prompts: int = 16
    gate: bool = True  # False: measure and record, but do not fail
    logits: bool = False  # graphs also return raw logits
    accuracy_level: int = 0  # of MatMulNBits
    operators: bool = True  # use operators of our own where the target has them
    device: str = "cpu"  # of torch, for calibration and quantization
    work: Path | None = None  # None: OUT/.work, removed at the end
    engines: tuple[str, ...] | None = None  # of which graphs; None: of those the defaults need
    engine_batch: int = 1  # sequences at once, at most
    force: bool = False  # replace a bundle that is there


def build(
    folder: Path | None,
    target_name: str,
    out: Path,
    options: BuildOptions | None = None,
    progress: Progress | None = None,
) -> Manifest | None:
    """Build a bundle of the checkpoint in `folder` for a target into the folder `out`.

    `folder` None is the reference model. Started by `torchrun`, all but the first process return
    None after quantization. Raises UserError on anything that the user can mend. `out`
    holds a finished bundle afterwards, or none; a build that was killed goes on when run again.
    """
    options, progress = options or BuildOptions(), progress or Progress()
    quant, target = options.quant, load_target(target_name)
    checkpoint = open_checkpoint(
        folder or reference_folder(),
        options.mask_id,
        options.eot_id,
        options.attention_block,
        options.family,
    )
    spec = checkpoint.spec
    recipe = make_recipe(options.recipe or target.default_recipe, spec, quant, target.compute)
    settings = default_settings(checkpoint, options.decode)
    canvas = longest_canvas(checkpoint, options.decode, settings)
    prompts = read_prompts(
        checkpoint, options.calib, options.calib_prompts, options.gate_prompts, quant.seed,
        settings.gen_length,
    )  # fmt: skip
    check_lengths(prompts, settings, canvas)
    kinds = graph_kinds(options.logits, spec.can_cast_shadow)
    use = operator_use(target, options.operators, options.accuracy_level)
    check_accuracy(target, use, options.accuracy_level)
    check_formats(target, spec, recipe, use)
    count = count_engines(target, kinds, settings, options.engines, needs_plugins(use, recipe))
    others = alternatives(spec, recipe, canvas, target)
    check_fits(estimate(spec, recipe, canvas, count), target, out, others)
    check_output(out, options.force)

    return_large_blocks()
    device = device_of(options.device)
    with open_team(device) as team, open_work(options.work or out / emit.WORK, team.rank) as work:
        digest = check_weights(checkpoint, work, progress)
        made = run_recipe(
            checkpoint, digest, recipe, settings, canvas, prompts, device, team, work, progress
        )
        if team.rank != 0:
            return None  # what is left is the work of one process
        described = describe_model(checkpoint, digest, used_vocabulary(checkpoint), canvas)
        facts, rollout = loop_facts(described), comparable(settings)
        reference = record_reference(
            FloatModel(checkpoint, device), digest, facts, rollout, prompts.held_out, work, progress
        )

        from exporter.lower import write_graphs, write_weights  # 40 MB that quantizing can use

        draft = work.draft()
        recipe = made.recipe
        stored = write_weights(made.source, made.quantized, recipe, facts, draft, progress)
        rules = rules_of(target, canvas)
        operators = write_graphs(spec, stored, recipe, kinds, draft, use, rules)
        emit.copy_loop(draft)
        plugins = emit.copy_kernels(draft, use) if operators and use is not None else None
        emit.copy_tokenizer(checkpoint.folder, draft)
        reference.save(draft / emit.GATE)
        manifest = emit.describe(
            described, recipe, target, settings, options.accuracy_level, kinds,
            operators, cache_bytes(spec, recipe, [block.attention for block in stored.blocks]),
            emit.describe_calibration(made.calibration, prompts, rollout),
            emit.describe_passes(made.calibration, made.quantized, made.recipe),
        )  # fmt: skip
        floor = predict(spec, recipe, target, use, settings, canvas)
        manifest = manifest.model_copy(update={"prediction": floor})
        if target.engine_built != "none":
            engines.copy_builder(draft)
            plans = plan_engines(kinds, settings, canvas, options.engine_batch)
            planned = emit.describe_engines(target, recipe, options.engine_batch, plans, plugins)
            manifest = manifest.model_copy(update={"engines": planned})
        emit.write_manifest(draft, manifest)  # the loop reads it while the gate runs
        gate = measure(draft, reference, rollout, recipe.limits, progress)
        judge(gate, options.gate)
        manifest = manifest.model_copy(update={"gate": gate})
        if manifest.engines is not None and target.engine_built == "ahead-of-time":
            built = engines.build_engines(draft, manifest.engines, options.engines, progress)
            manifest = manifest.model_copy(update={"engines": built})
        report.write(draft, manifest)
        manifest = manifest.model_copy(update={"files": emit.list_files(draft)})
        emit.write_manifest(draft, manifest)
        emit.publish(draft, out)
        if options.work is None:
            work.remove()
    return manifest


def judge(gate: GateResult, enforce: bool) -> None:
    """Raises UserError when the gate failed and counts; otherwise a failure is logged."""
    if gate.passed:
        return
    seen = (
        f"The gate failed: regret {gate.regret:.4f} (at most {gate.largest_regret}), KL "
        f"{gate.kl:.4f} (at most {gate.largest_kl}), arg-max agreement {gate.argmax_agreement:.3f}"
    )
    if enforce:
        raise UserError(
            seen, "Use a recipe with more bits, better calibration prompts, or keep it: --no-gate"
        )
    log.warning("%s; kept because the gate is off", seen)
