"""The pipeline, from a checkpoint to a verified bundle. It reads top to bottom."""

import logging
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch

import targets
from exporter import emit, report
from exporter.calibrate import calibrate
from exporter.checkpoint import Checkpoint, open_checkpoint
from exporter.decoding import (
    DecodeOptions,
    comparable,
    default_settings,
    describe_model,
    longest_canvas,
    loop_facts,
)
from exporter.errors import UserError
from exporter.float_session import FloatModel
from exporter.gate import Reference, measure, record_reference
from exporter.graph import GraphKind
from exporter.lower import write_graphs, write_weights
from exporter.manifest import (
    Calibration,
    Decode,
    GateResult,
    GraphFile,
    Manifest,
    ModelFacts,
    PassRecord,
    Runtime,
)
from exporter.planner import check_fits, estimate
from exporter.progress import Progress
from exporter.prompts import Prompts, read_prompts, used_vocabulary
from exporter.quantize import Quantized, quantize
from exporter.recipes import QuantOptions, Recipe, make_recipe
from exporter.runtime.settings import Settings
from exporter.tasks import reference_folder
from exporter.tensor_files import write_atomically
from exporter.work import Work, open_work
from passes.calibrate.states import CalibrationSet

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildOptions:
    """Everything that `dqexport build` can be told beside checkpoint, target and output."""

    recipe: str | None = None  # None: the target's default
    quant: QuantOptions = field(default_factory=QuantOptions)
    decode: DecodeOptions = field(default_factory=DecodeOptions)
    mask_id: int | None = None
    eot_id: int | None = None
    calib: Path | None = None  # .jsonl or .txt; None: the reference tasks
    calib_prompts: int = 32
    gate_prompts: int = 16
    gate: bool = True  # False: measure and record, but do not fail
    logits: bool = False  # graphs also return raw logits
    accuracy_level: int = 0  # of MatMulNBits
    device: str = "cpu"  # of torch, for calibration and quantization
    work: Path | None = None  # None: OUT/.work
    force: bool = False  # replace a bundle that is there


def build(
    checkpoint: Path | None,
    target_name: str,
    out: Path,
    options: BuildOptions | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Build a bundle for a target into the folder `out`; `checkpoint` None is the reference model.

    Raises UserError on anything that the user can mend. `out` holds a finished bundle or none.
    """
    options, progress = options or BuildOptions(), progress or Progress()
    target = _load_target(target_name)
    source = open_checkpoint(checkpoint or reference_folder(), options.mask_id, options.eot_id)
    name = options.recipe or target.default_recipe
    recipe = make_recipe(name, source.spec, options.quant, target.compute)
    settings = default_settings(source, options.decode)
    canvas = longest_canvas(source, options.decode, settings)
    prompts = read_prompts(
        source, options.calib, options.calib_prompts, options.gate_prompts, options.quant.seed
    )
    _check_lengths(prompts, settings, canvas)
    check_fits(estimate(source.spec, recipe, canvas), target, out)
    _check_output(out, options.force)
    kinds = [GraphKind(g, s, options.logits) for g in (False, True) for s in (False, True)]

    with open_work(options.work or out / ".work") as work, torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.quant.seed)
        digest = _check_weights(source, work, progress)
        model = FloatModel(source, options.device)
        facts = describe_model(source, _name(source), digest, used_vocabulary(source), canvas)
        rollout = comparable(settings)
        calibration = _calibrate(model, facts, rollout, prompts, recipe, work, progress)
        quantized = _quantize(model, calibration, recipe, digest, work, progress)
        reference = _reference(model, facts, rollout, prompts, work, progress)

        draft = work.draft()
        (draft / "graphs").mkdir()
        stored = write_weights(
            source, quantized, recipe, facts.vocab_size, canvas,
            draft / "graphs" / "weights.bin", progress,
        )  # fmt: skip
        graphs = write_graphs(source.spec, stored, recipe, kinds, draft / "graphs")
        emit.copy_loop(draft)
        emit.copy_tokenizer(source.folder, draft)
        reference.save(draft / "gate.safetensors")
        manifest = Manifest(
            made_by=f"dqexport {version('dqexport')}",
            recipe=recipe.name,
            model=facts,
            target=target.name,
            compute=recipe.compute,
            decode=_decode(settings),
            runtime=Runtime(
                name="onnxruntime",
                providers=list(target.providers),
                accuracy_level=options.accuracy_level,
            ),
            graphs=[_graph_file(kind, path, draft) for kind, path in graphs.items()],
            calibration=_calibration(calibration, prompts, rollout),
            passes=_records(calibration, quantized, recipe),
            gate=None,
            files=[],
        )
        emit.write_manifest(draft, manifest)  # the loop reads it while the gate runs
        gate = measure(draft, reference, rollout, recipe.limits, progress)
        _judge(gate, options.gate)
        manifest = manifest.model_copy(
            update={"gate": gate.model_copy(update={"enforced": options.gate})}
        )
        report.write(draft, manifest)
        manifest = manifest.model_copy(update={"files": emit.list_files(draft)})
        emit.write_manifest(draft, manifest)
        emit.publish(draft, out)
    if options.work is None:
        work.remove()
    return manifest


def _load_target(name: str) -> targets.Target:
    try:
        target = targets.load(name)
    except ValueError as error:
        raise UserError(str(error), "List them with `dqexport targets`") from None
    if not target.supported:
        raise UserError(
            f"Target `{name}` ({target.title}): {target.build_today}",
            "Build for `cpu` or `cuda`: the portable graphs are what its runtime parses",
        )
    return target


def _check_lengths(prompts: Prompts, settings: Settings, canvas: int) -> None:
    longest = max(len(ids) for ids in (*prompts.calibration, *prompts.held_out))
    if longest + settings.gen_length > canvas:
        raise UserError(
            f"A prompt of {longest} tokens and an answer of {settings.gen_length} do not fit into "
            f"the canvas of {canvas} tokens",
            "Shorten the prompts, or lower --gen-length",
        )


def _check_output(out: Path, force: bool) -> None:
    """Never touch a folder that is not ours."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"`{out}` is a file", "Choose another folder with -o")
    if (out / emit.MANIFEST).is_file():
        if not force:
            raise UserError(
                f"`{out}` holds a bundle already", "Replace it with --force, or choose another -o"
            )
    elif any(out.iterdir()) and not (out / ".work").is_dir():
        raise UserError(
            f"`{out}` is not empty and holds no bundle", "Choose an empty or new folder with -o"
        )


def _name(checkpoint: Checkpoint) -> str:
    return checkpoint.folder.resolve().name


def _check_weights(checkpoint: Checkpoint, work: Work, progress: Progress) -> str:
    """Digest of the checkpoint; every value is looked at once."""
    file = work.stage("checkpoint", checkpoint.fingerprint()) / "digest"
    if not file.is_file():
        with progress.stage("check weights", len(checkpoint.files)) as step:
            write_atomically(file, [checkpoint.digest(lambda count: None).encode()])
            step()
    return file.read_text()


def _calibrate(
    model: FloatModel,
    facts: ModelFacts,
    rollout: Settings,
    prompts: Prompts,
    recipe: Recipe,
    work: Work,
    progress: Progress,
) -> CalibrationSet | None:
    key = (facts, rollout, prompts.calibration, recipe.draw, recipe.weigh)
    folder = work.stage("calibrate", *key)
    return calibrate(
        model, loop_facts(facts), rollout, prompts.calibration, recipe, folder, progress
    )


def _quantize(
    model: FloatModel,
    calibration: CalibrationSet | None,
    recipe: Recipe,
    digest: str,
    work: Work,
    progress: Progress,
) -> Quantized | None:
    seen = None if calibration is None else (calibration.provenance, recipe.draw, recipe.weigh)
    folder = work.stage("quantize", digest, seen, recipe.blocks)
    return quantize(model, calibration, recipe, folder, progress)


def _reference(
    model: FloatModel,
    facts: ModelFacts,
    rollout: Settings,
    prompts: Prompts,
    work: Work,
    progress: Progress,
) -> Reference:
    file = work.stage("reference", facts, rollout, prompts.held_out) / "reference.safetensors"
    if not file.is_file():
        found = record_reference(model, loop_facts(facts), rollout, prompts.held_out, progress)
        found.save(file)
    return Reference.load(file)


def _decode(settings: Settings) -> Decode:
    return Decode(**asdict(settings))


def _graph_file(kind: GraphKind, path: Path, draft: Path) -> GraphFile:
    return GraphFile(
        name=kind.name,
        path=path.relative_to(draft).as_posix(),
        guided=kind.guided,
        outputs=kind.outputs,
    )


def _calibration(
    calibration: CalibrationSet | None, prompts: Prompts, rollout: Settings
) -> Calibration | None:
    if calibration is None:
        return None
    return Calibration(
        prompts=len(prompts.calibration),
        source=prompts.source,
        settings=_decode(rollout),
        states=calibration.provenance,
        counts=calibration.counts,
    )


def _records(
    calibration: CalibrationSet | None, quantized: Quantized | None, recipe: Recipe
) -> list[PassRecord]:
    """Every pass that ran, in order, with its settings and numbers."""
    records: list[PassRecord] = []
    if calibration is not None:
        for step in (recipe.draw, recipe.weigh):
            if step is not None:
                stats = calibration.counts
                records.append(PassRecord(step=repr(step), where="calibration", stats=stats))
    for index in range(quantized.layers if quantized else 0):
        assert quantized is not None
        for fact in quantized.facts(index).passes:
            records.append(PassRecord(where=f"block {index}", **fact))
    if recipe.head_bits == 8:
        step_text = f"Rtn(bits=8, group={recipe.head_group})"
        records.append(PassRecord(step=step_text, where="head", stats={}))
    return records


def _judge(gate: GateResult, enforce: bool) -> None:
    if gate.passed:
        return
    seen = (
        f"The gate failed: arg-max agreement {gate.argmax_agreement:.3f} (at least "
        f"{gate.least_argmax} wanted), KL {gate.kl:.4f} (at most {gate.largest_kl})"
    )
    if enforce:
        raise UserError(
            seen, "Use a recipe with more bits, better calibration prompts, or keep it: --no-gate"
        )
    log.warning("%s; kept because of --no-gate", seen)
