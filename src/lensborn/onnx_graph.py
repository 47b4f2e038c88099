"""A network of a bundle, from OpenVINO's graph to ONNX, operation by operation.

OpenVINO reads ONNX and does not write it, and a bundle holds no other form of its networks. Translated are the
operations that our exports consist of (OpenVINO's opset 1 to 8 to ONNX's opset 17), and no others: a graph with
another one is refused. Weights that the bundle keeps in half precision become float32, which every runtime takes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

OPSET = 17
IR_VERSION = 8  # the first with that opset: older runtimes read the file, too
INPUT, OUTPUT = "crops", "feature"

_SAME_NAME = {
    "Add": "Add",
    "Subtract": "Sub",
    "Multiply": "Mul",
    "Divide": "Div",
    "Relu": "Relu",
    "Sqrt": "Sqrt",
}
_OF_ONE = ("Relu", "Sqrt")  # nothing to broadcast


class TranslationError(ValueError):
    """A graph that cannot be written as ONNX; the message names the operation."""


def to_onnx(graph: Any, name: str) -> bytes:
    """The ONNX file of an OpenVINO model with one input (N, 3, S, S) float32 and one output (N, D).

    Its input is called `INPUT`, its output `OUTPUT`; N stays free. The same graph gives the same bytes. Raises
    TranslationError for an operation, or a setting of one, that is not known here.
    """
    translation = _Translation()
    for node in graph.get_ordered_ops():
        translation.take(node)
    (_, *image), (_, width) = graph.input(0).partial_shape, graph.output(0).partial_shape
    described = helper.make_graph(
        translation.nodes,
        name,
        [_tensor(INPUT, [side.get_length() for side in image])],
        [_tensor(OUTPUT, [width.get_length()])],
        translation.initialisers,
    )
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(
        described, opset_imports=[opset], ir_version=IR_VERSION, producer_name="lensborn"
    )
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def _tensor(name: str, shape: Sequence[int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", *shape])


class _Translation:
    """What was translated so far: ONNX's nodes and weights, and what OpenVINO's outputs are called there."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initialisers: list[onnx.TensorProto] = []
        self._names: dict[str, str] = {}  # of the first output of a node, by OpenVINO's name of the node
        self._constants: dict[str, npt.NDArray[Any]] = {}  # not written before something needs them

    def take(self, node: Any) -> None:
        """Translate one node, whose sources were taken before."""
        kind, name = node.get_type_name(), node.get_name()
        if kind == "Constant":
            self._constants[name] = np.array(node.get_data())
        elif kind == "Convert":
            self._constants[name] = self._constant(node, 0)
        elif kind == "Parameter":
            _require(node, element_type="f32")
            self._names[name] = INPUT
        elif kind == "Result":
            self.nodes.append(helper.make_node("Identity", [self._value(node, 0)], [OUTPUT]))
        elif kind in _SAME_NAME:
            if kind not in _OF_ONE:
                _require(node, auto_broadcast="numpy")
            inputs = [self._value(node, port) for port in range(node.get_input_size())]
            self._add(node, _SAME_NAME[kind], inputs)
        elif kind in _OTHERS:
            _OTHERS[kind](self, node)
        else:
            raise TranslationError(
                f"the graph has the operation {kind}, which is not known here how to write as ONNX: "
                "known are those of the backbones that `lensborn pretrain` trains"
            )

    def convolution(self, node: Any) -> None:
        """Convolution and GroupConvolution: OpenVINO gives the groups an axis of their own, ONNX does not."""
        attributes = _require(node, auto_pad="explicit")
        weights, groups = self._constant(node, 1), 1
        if node.get_type_name() == "GroupConvolution":
            groups = weights.shape[0]
            weights = weights.reshape(-1, *weights.shape[2:])
        kernel = self._weights(weights)
        self._add(node, "Conv", [self._value(node, 0), kernel], group=groups, **_window(attributes))

    def pad(self, node: Any) -> None:
        """Pad with a constant, by as many places as constants say."""
        _require(node, pad_mode="constant")
        pads = np.concatenate([self._constant(node, port).ravel() for port in (1, 2)]).astype(np.int64)
        name = f"places_{len(self.initialisers)}"
        self.initialisers.append(numpy_helper.from_array(pads, name))
        value = self._constant(node, 3) if node.get_input_size() > 3 else np.float32(0)
        self._add(node, "Pad", [self._value(node, 0), name, self._weights(value)], mode="constant")

    def max_pool(self, node: Any) -> None:
        """MaxPool, of which the values alone are used, not their places."""
        attributes = _require(node, auto_pad="explicit", rounding_type="floor")
        if any(output.get_target_inputs() for output in node.outputs()[1:]):
            raise TranslationError(
                "the graph uses the places of MaxPool's maxima: only their values are known"
            )
        self._add(
            node,
            "MaxPool",
            [self._value(node, 0)],
            kernel_shape=list(attributes["kernel"]),
            **_window(attributes),
        )

    def clamp(self, node: Any) -> None:
        """Clamp: ONNX takes the bounds as inputs."""
        attributes = node.get_attributes()
        bounds = [self._weights(np.float32(attributes[bound])) for bound in ("min", "max")]
        self._add(node, "Clip", [self._value(node, 0), *bounds])

    def reduce_mean(self, node: Any) -> None:
        """ReduceMean over constant axes."""
        axes = self._constant(node, 1).ravel().tolist()
        keep = int(node.get_attributes()["keep_dims"])
        self._add(
            node, "ReduceMean", [self._value(node, 0)], axes=[int(axis) for axis in axes], keepdims=keep
        )

    def concatenation(self, node: Any) -> None:
        """Concat."""
        inputs = [self._value(node, port) for port in range(node.get_input_size())]
        self._add(node, "Concat", inputs, axis=int(node.get_attributes()["axis"]))

    def matrix_product(self, node: Any) -> None:
        """MatMul by a constant matrix, which is turned here where OpenVINO turns it at run time."""
        attributes = _require(node, transpose_a=False)
        matrix = self._constant(node, 1)
        if attributes["transpose_b"]:
            matrix = np.swapaxes(matrix, -1, -2)
        self._add(node, "MatMul", [self._value(node, 0), self._weights(matrix)])

    def _add(self, node: Any, kind: str, inputs: Sequence[str], **attributes: Any) -> None:
        output = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        self._names[node.get_name()] = output

    def _value(self, node: Any, port: int) -> str:
        """ONNX's name of what comes into a port."""
        source = node.input_value(port).get_node().get_name()
        if source not in self._names:
            self._names[source] = self._weights(self._constants[source])
        return self._names[source]

    def _constant(self, node: Any, port: int) -> npt.NDArray[Any]:
        source = node.input_value(port).get_node()
        if source.get_name() not in self._constants:
            raise TranslationError(
                f"{node.get_type_name()} takes the result of {source.get_type_name()}, where only a constant is "
                "known here how to write as ONNX"
            )
        return self._constants[source.get_name()]

    def _weights(self, array: npt.ArrayLike) -> str:
        """Write a constant of the graph, as float32; its name."""
        name = f"weights_{len(self.initialisers)}"
        values = np.ascontiguousarray(array, dtype=np.float32).reshape(np.shape(array))
        self.initialisers.append(numpy_helper.from_array(values, name))
        return name


_OTHERS: dict[str, Callable[[_Translation, Any], None]] = {
    "Convolution": _Translation.convolution,
    "GroupConvolution": _Translation.convolution,
    "Pad": _Translation.pad,
    "MaxPool": _Translation.max_pool,
    "Clamp": _Translation.clamp,
    "ReduceMean": _Translation.reduce_mean,
    "Concat": _Translation.concatenation,
    "MatMul": _Translation.matrix_product,
}


def _require(node: Any, **wanted: Any) -> dict[str, Any]:
    """The attributes of a node; raises TranslationError where one is not as wanted."""
    attributes: dict[str, Any] = node.get_attributes()
    for key, value in wanted.items():
        if attributes[key] != value:
            raise TranslationError(
                f"{node.get_type_name()} with {key} {attributes[key]!r} is not known here: only {value!r} is"
            )
    return attributes


def _window(attributes: dict[str, Any]) -> dict[str, list[int]]:
    return {
        "strides": list(attributes["strides"]),
        "dilations": list(attributes["dilations"]),
        "pads": [*attributes["pads_begin"], *attributes["pads_end"]],
    }
