"""Times in OpenVINO, on the CPU."""

import numpy as np
import onnx

from mmmpq.export.extras import deploy_extra
from mmmpq.export.latency.bench import Input, Session, in_integers
from mmmpq.export.onnx.about import FORMAT
from mmmpq.export.openvino import compile_net, read_net

LAYERS = ('Convolution', 'Deconvolution', 'FullyConnected', 'MatMul')


class OpenVINOSession(Session):
    """The same in OpenVINO; its execution graph says what it computes in integers.

    Layers are named with what they compute in: 'Convolution u8'.
    """

    runtime = 'OpenVINO'
    signed = True  # with zero points of weights it computes in float

    def _open(self, data: str | bytes, threads: int) -> list[Input]:
        openvino = deploy_extra('openvino')
        self.data, self.threads = data, threads
        self.net = read_net(data)
        return [
            Input(
                i.get_any_name(),
                [None if n.is_dynamic else n.get_length() for n in i.partial_shape],
                i.get_element_type() == openvino.Type.f32,
            )
            for i in self.net.inputs
        ]

    def _noted(self) -> str | None:
        if isinstance(self.data, bytes) or not self.data.endswith('.onnx'):
            return None
        model = onnx.load(self.data, load_external_data=False)
        return {p.key: p.value for p in model.metadata_props}.get(FORMAT)

    def _bind(self, name: str, data: np.ndarray) -> None:
        openvino = deploy_extra('openvino')
        self.net.reshape(list(data.shape))
        compiled = compile_net(self.net, self.threads)
        for node in compiled.get_runtime_model().get_ops():
            info = node.get_rt_info()
            kind, precision = (
                str(info[key].value) for key in ('layerType', 'runtimePrecision')
            )
            op = f'{kind} {precision}' if kind in LAYERS else kind
            self.ops[op] += 1
            if in_integers(op):
                self.integer_inputs |= {
                    i.get_source_output().get_node().get_friendly_name()
                    for i in node.inputs()
                }
        self.request = compiled.create_infer_request()
        self.request.set_input_tensor(openvino.Tensor(data))

    def __call__(self) -> None:
        self.request.infer()
