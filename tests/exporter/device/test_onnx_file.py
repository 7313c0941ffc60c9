"""The reader of ONNX files against the one of the package onnx."""

from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from exporter.device.build_error import EngineError
from exporter.device.onnx_file import OnnxFile, read_onnx

NAMES = st.text(min_size=1, max_size=200)  # some longer than one byte of a length can say
AXES = st.lists(st.integers(1, 2**40) | NAMES, max_size=4)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("onnx") / "g.onnx"


@given(inputs=st.dictionaries(NAMES, AXES, max_size=5), operators=st.sets(NAMES), inner=NAMES)
def test_inputs_and_operators_are_those_that_were_written(
    place: Path, inputs: dict[str, list[int | str]], operators: set[str], inner: str
) -> None:
    """A constant that is an input too has a value: nobody asks for it."""
    constant = helper.make_tensor("constant" * 40, TensorProto.FLOAT, [2], [1, 2])
    values = [helper.make_tensor_value_info(n, TensorProto.INT64, a) for n, a in inputs.items()]
    values.append(helper.make_tensor_value_info(constant.name, TensorProto.FLOAT, [2]))
    nodes = [helper.make_node(name, ["x"], ["y"], alpha=1.5) for name in operators]
    graph = helper.make_graph(nodes, "g", values, [], [constant])
    opset = [helper.make_opsetid("", 21)]
    body = helper.make_function(
        "d", "F", ["a"], ["b"], [helper.make_node(inner, ["a"], ["b"])], opset
    )
    onnx.save(helper.make_model(graph, opset_imports=opset, functions=[body]), place)
    assert read_onnx(place) == OnnxFile(inputs, frozenset({*operators, inner}))


@pytest.mark.parametrize("content", [b"", b"no graph", b"\x3a\x7f", b"\x0b", b"\x08" + b"\xff" * 9])
def test_what_is_no_graph_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "g.onnx").write_bytes(content)
    with pytest.raises(EngineError, match=r"g\.onnx is not understood"):
        read_onnx(tmp_path / "g.onnx")


def test_what_is_not_there_is_missing(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"g\.onnx is missing"):
        read_onnx(tmp_path / "g.onnx")
