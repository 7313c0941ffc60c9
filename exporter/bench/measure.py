"""Measures everything that can run a bundle here, one contestant after the other.

Only one model is in memory at a time, so contestants do not take turns: what else the machine does
may meet one of them more than another. Quartiles show how steady it was.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from exporter.bench.contestants import Contestant, runs_on
from exporter.bench.decodes import Answers, prompts_of, time_answers
from exporter.bench.forwards import Load, loads, make_call
from exporter.bench.layers import Layer, layers_of
from exporter.bench.timing import Spread, milliseconds
from exporter.errors import UserError
from exporter.manifest import Manifest
from exporter.progress import Progress, Step
from exporter.runtime.bundle import Bundle
from exporter.runtime.candidates import wanted
from exporter.runtime.errors import UserError as RuntimeUserError


@dataclass(frozen=True)
class BenchOptions:
    """What the measurement can be told."""

    canvases: tuple[int, ...]  # tokens
    rounds: int
    prompts: int  # decoded in each round; 0: none
    profile: bool  # the layers of each forward, too
    device: str = "cpu"  # of torch


@dataclass(frozen=True)
class Forward:
    """One load, timed."""

    load: Load
    milliseconds: Spread
    floor: float | None  # predicted for the bundle's board, where this is its own runtime
    layers: list[Layer] | None  # None: not asked for, or not told


@dataclass(frozen=True)
class Outcome:
    """What was measured of one contestant."""

    name: str
    own: bool
    runs_on: list[str]  # a line a graph
    forwards: list[Forward]
    answers: Answers | None


@dataclass(frozen=True)
class Measured:
    """Outcomes, and why the others have none."""

    outcomes: list[Outcome]
    unmeasured: dict[str, str]  # reasons by contestant and graph


def measure(
    bundle: Bundle,
    manifest: Manifest,
    contestants: Sequence[Contestant],
    options: BenchOptions,
    progress: Progress,
) -> Measured:
    """Time forwards and answers of every contestant that can be opened here."""
    outcomes, unmeasured = list[Outcome](), dict[str, str]()
    plans = _plans(bundle, options)
    for contestant in contestants:
        parts = []
        with progress.stage(contestant.name, sum(plan.steps for plan in plans)) as step:
            for plan in plans:
                try:
                    parts.append(_measured(bundle, manifest, contestant, plan, options, step))
                except (UserError, RuntimeUserError) as error:
                    unmeasured[f"{contestant.name}, {plan.graph}"] = str(error)
        if parts:
            outcomes.append(_joined(parts))
    return Measured(outcomes, unmeasured)


@dataclass(frozen=True)
class _Plan:
    """What is measured with one graph, full or cached."""

    graph: str
    loads: list[Load]
    answers: bool

    @property
    def steps(self) -> int:
        return len(self.loads) + self.answers


def _plans(bundle: Bundle, options: BenchOptions) -> list[_Plan]:
    settings, names = bundle.decode, wanted(bundle.decode)
    guided, caches = settings.cfg_scale > 0, settings.cache != "none"
    kept = any(g.cached and g.guided == guided and names <= {*g.outputs} for g in bundle.graphs)
    found = loads(list(options.canvases), settings, kept)
    plans = []
    for graph in ("full", "cached"):
        mine = [load for load in found if load.graph == graph]
        plans.append(_Plan(graph, mine, options.prompts > 0 and caches == (graph == "cached")))
    return [plan for plan in plans if plan.steps]


def _measured(
    bundle: Bundle,
    manifest: Manifest,
    contestant: Contestant,
    plan: _Plan,
    options: BenchOptions,
    step: Step,
) -> Outcome:
    """With one graph in memory, which goes when this returns."""
    settings, model = bundle.decode, bundle.model
    session = contestant.open(settings.cfg_scale > 0, wanted(settings), plan.graph == "cached")
    calls = [make_call(session, load, model, settings) for load in plan.loads]
    timed, answers = list[Spread](), None
    for call in calls:
        timed.append(milliseconds(call, options.rounds))
        step()
    if plan.answers:
        prompts = prompts_of(bundle, options.prompts)
        answers = time_answers(session, model, settings, prompts, options.rounds)
        step()
    floors = [floor_of(manifest, load) if contestant.own else None for load in plan.loads]
    layers = [layers_of(session, call) if options.profile else None for call in calls]
    forwards = [*map(Forward, plan.loads, timed, floors, layers)]
    ran = runs_on(contestant, session, options.device)
    return Outcome(contestant.name, contestant.own, [ran], forwards, answers)


def _joined(parts: Sequence[Outcome]) -> Outcome:
    """The parts of one contestant as one."""
    return Outcome(
        name=parts[0].name,
        own=parts[0].own,
        runs_on=[line for part in parts for line in part.runs_on],
        forwards=[forward for part in parts for forward in part.forwards],
        answers=next((part.answers for part in parts if part.answers is not None), None),
    )


def floor_of(manifest: Manifest, load: Load) -> float | None:
    """Milliseconds of a forward that the manifest predicts for the board, at least."""
    if manifest.prediction is None:
        return None
    guided = manifest.decode.cfg_scale > 0
    name = load.graph + "-guided" * guided
    for one in manifest.prediction.forwards:
        if (one.graph, one.tokens, one.canvas) == (name, load.tokens, load.canvas):
            return one.milliseconds
    return None
