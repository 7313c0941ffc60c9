"""When work is recorded, replayed and given back."""

import gc
from dataclasses import dataclass, field

import pytest

from exporter.runtime.cuda_graphs import CudaGraphs
from exporter.runtime.cuda_runtime import Cuda
from exporter.runtime.errors import UserError
from tests.cuda_stand_in import CudaStandIn


@dataclass
class Work:
    """Puts its name into the stream."""

    api: CudaStandIn
    name: str
    done: list[str] = field(default_factory=list)
    fails_in_capture: bool = False

    def __call__(self) -> None:
        if self.fails_in_capture and self.api.captured is not None:
            raise UserError("cannot be recorded")
        self.api.enqueue(lambda: self.done.append(self.name))


@pytest.fixture
def api() -> CudaStandIn:
    return CudaStandIn()


def use(graphs: CudaGraphs, api: CudaStandIn, key: str, **options: bool) -> tuple[str, list[str]]:
    """Which work stood for `key`, and what was done by it."""
    done: list[str] = []
    shared, own = (Work(api, name, done, **options) for name in ("shared", "own"))
    made = graphs.run(key, lambda: shared, lambda: own)
    api.cudaStreamSynchronize(0)
    return made.name, made.done


def test_the_second_use_records_and_the_third_replays(api: CudaStandIn) -> None:
    graphs = CudaGraphs(Cuda(api), on=True)
    assert use(graphs, api, "a") == ("shared", ["shared"])
    assert use(graphs, api, "a") == ("own", ["own"])
    assert (api.captures, api.launches) == (1, 0)
    assert use(graphs, api, "a") == ("own", ["own", "own"])  # the list of the one that is recorded
    assert (api.captures, api.launches) == (1, 1)
    assert use(graphs, api, "b") == ("shared", ["shared"])


def test_the_one_not_used_for_the_longest_time_goes(api: CudaStandIn) -> None:
    graphs = CudaGraphs(Cuda(api), on=True, most=2)
    for key in "aabb":
        use(graphs, api, key)
    use(graphs, api, "a")  # b is older now
    for key in "cc":
        use(graphs, api, key)
    gc.collect()
    assert (api.captures, api.alive) == (3, 2)
    launches = api.launches
    use(graphs, api, "a")
    assert api.launches == launches + 1
    use(graphs, api, "b")  # recorded anew: it was seen before
    assert (api.captures, api.launches) == (4, launches + 1)
    del graphs
    gc.collect()
    assert not api.alive


def test_off_is_off(api: CudaStandIn) -> None:
    graphs = CudaGraphs(Cuda(api), on=False)
    assert [use(graphs, api, "a")[0] for _ in range(4)] == ["shared"] * 4
    assert not api.captures


def test_work_that_cannot_be_recorded_is_done_and_recording_ends(
    api: CudaStandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    graphs = CudaGraphs(Cuda(api), on=True)
    for _ in range(3):
        for key in "ab":
            assert use(graphs, api, key, fails_in_capture=True)[1]
    assert api.captured is None and not api.captures
    assert capsys.readouterr().err.count("no CUDA graphs (cannot be recorded)") == 1
