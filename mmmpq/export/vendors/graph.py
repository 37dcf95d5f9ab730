"""The float net as ONNX, with quantized weights on their levels, and its names."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from onnx import GraphProto, NodeProto
from torch import nn

from mmmpq.export.integers import from_integers, weight_integers
from mmmpq.export.onnx.builder import LayerWriter
from mmmpq.export.onnx.check.weights import Net
from mmmpq.export.onnx.graph import traced_layers, write_graph
from mmmpq.export.onnx.trace import FLOAT
from mmmpq.layers.base import QuantLayer
from mmmpq.layers.quantized_weight import outputs_first


class FloatGraph:
    """A float ONNX graph, and where the layers of a net are in it.

    A weight is called as in the model, 'backbone.conv1.weight'. Its values are on the
    levels of its quantizer, so that who rounds them to these levels changes nothing.

    Args:
        model: A toolbox model of fixed precision with calibrated quantizers.
        input_shape: (C, H, W) of an image, in pixels.
        classes: Their names, for the metadata.

    Attributes:
        layers: Those that the graph calls, by name.
        readers: Of each tensor that a layer quantizes, these layers.
        nodes: Of each layer, the nodes that compute it.

    Raises:
        ValueError: As of :func:`mmmpq.export.onnx.graph.export_onnx`.
    """

    def __init__(
        self, model: nn.Module, input_shape: Sequence[int], classes: Sequence[str] = ()
    ) -> None:
        self.model, self.about, layers = traced_layers(
            model, input_shape, classes, FLOAT
        )
        writer = _Writer(layers)
        writer.convert(self.model)
        self.readers = writer.readers
        self.nodes: dict[str, list[NodeProto]] = {}
        net = Net(self.model)
        for node in net.nodes:
            if net.is_layer(node) and (name := net.layer_name(node)) in layers:
                self.nodes.setdefault(name, []).append(node)
        self.layers: Mapping[str, QuantLayer] = {
            name: layer for name, layer in layers.items() if name in self.nodes
        }

    def write(self, path: str | Path) -> None:
        write_graph(self.model, path, self.about)


class _Writer(LayerWriter):
    """Puts weights on their levels, and inputs nowhere."""

    def __init__(self, layers: Mapping[str, QuantLayer]) -> None:
        super().__init__(layers)
        self.readers: dict[str, list[str]] = {}

    def weight(self, name: str, latent: str) -> str:
        layer = self.layers[name]
        integers = weight_integers(layer)
        if integers is None:
            return latent
        values = outputs_first(from_integers(*integers), layer.out_dim)
        return self.floats(f'{name}.weight', values.cpu().numpy())

    def input(self, name: str, x: str) -> str:
        readers = self.readers.setdefault(x, [])
        if name not in readers:
            readers.append(name)
        return x

    def finish(self, graph: GraphProto) -> None:
        latent = [t for t in graph.initializer if t.name not in self.initializers]
        del graph.initializer[:]
        graph.initializer.extend(latent)
        super().finish(graph)
