"""An exported network inside the toolbox's model: its own decoding, loop, evaluator."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmmpq.export.extras import deploy_extra
from mmmpq.export.onnx import cut as onnx_cut
from mmmpq.export.onnx.about import FORMAT, VERSION
from mmmpq.export.openvino import compile_net, read_net
from mmmpq.fileio import check_file, strict_json


class _OnnxRuntime:
    """A file in ONNX Runtime; ``axes`` of its images, an int where they are fixed."""

    name = 'ONNX Runtime'

    def __init__(self, path: str, threads: int) -> None:
        onnxruntime = deploy_extra('onnxruntime')
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            path, options, providers=['CPUExecutionProvider']
        )
        self.axes = self.session.get_inputs()[0].shape

    def run(self, names: list[str], images: np.ndarray) -> list[np.ndarray]:
        return self.session.run(names, {'images': images})


class _OpenVINO:
    """The same in OpenVINO."""

    name = 'OpenVINO'

    def __init__(self, path: str, threads: int) -> None:
        net = read_net(path)
        axes = net.inputs[0].partial_shape
        self.axes = [None if n.is_dynamic else n.get_length() for n in axes]
        self.compiled = compile_net(net, threads)

    def run(self, names: list[str], images: np.ndarray) -> list[np.ndarray]:
        outputs = self.compiled(images)
        return [np.array(outputs[name]) for name in names]


class OnnxNetwork:
    """An ONNX file of :func:`.onnx_graph.export_onnx`, run on the CPU.

    Args:
        path: The file.
        threads: Within an operator; default: as many as torch's.
        runtime: 'onnxruntime' or 'openvino'.

    Attributes:
        runtime: Its name.
        about: What the export said of the model: its class, ``input_shape``, names of
            the ``outputs``, ``policy``.
        names: Of all outputs, in order.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, not written by this package, or of a newer version;
            the extra `deploy` or `openvino` is missing.
    """

    def __init__(
        self,
        path: str | Path,
        threads: int | None = None,
        runtime: str = 'onnxruntime',
    ) -> None:
        deploy_extra(runtime)
        onnx = deploy_extra('onnx')
        check_file(str(path), 'ONNX model')
        threads = threads or torch.get_num_threads()
        opened = _OpenVINO if runtime == 'openvino' else _OnnxRuntime
        self.runtime = opened.name
        try:
            self._opened = opened(str(path), threads)
            model = onnx.load(path, load_external_data=False)
        except Exception as error:  # those of a runtime have no class in common
            raise ValueError(
                f'ONNX model: {opened.name} cannot open {path}: '
                f'{str(error).strip().splitlines()[0]}'
            ) from error
        self.about = _about({p.key: p.value for p in model.metadata_props}, path)
        self.names = onnx_cut.leaves(self.about['outputs'])

    def __call__(self, images: Tensor) -> dict[str, Any]:
        """What :func:`.onnx_cut.network` gives for preprocessed images (N, C, H, W).

        Raises:
            ValueError: Images of another size than the file was made for.
        """
        channels, height, width = self.about['input_shape']
        axes = self._opened.axes
        for side, axis in zip(images.shape[1:], axes[1:], strict=True):
            if isinstance(axis, int) and axis != side:
                raise ValueError(
                    f'ONNX model: found images of {tuple(images.shape[1:])}; it was '
                    f'exported for {channels, height, width}, which --input-shape of '
                    'tools/export.py sets'
                )
        data = images.detach().cpu().float().contiguous().numpy()
        at_once = axes[0] if isinstance(axes[0], int) else len(data)
        runs = [
            self._opened.run(self.names, data[i : i + at_once])
            for i in range(0, len(data), at_once)
        ]
        arrays = (
            runs[0] if len(runs) == 1 else map(np.concatenate, zip(*runs, strict=True))
        )
        tensors = {
            name: torch.from_numpy(array).to(images.device)
            for name, array in zip(self.names, arrays, strict=True)
        }
        return _filled(self.about['outputs'], tensors)


@functools.cache
def sums_are_cut() -> bool:
    """Whether ONNX Runtime cuts sums of products of 8 bits to 16 bits on this machine.

    Its kernels for unsigned inputs and signed weights do on an x86 without VNNI, of
    each two products. Found by such a product.

    Raises:
        ValueError: The extra `deploy` is missing.
    """
    onnx, runtime = deploy_extra('onnx'), deploy_extra('onnxruntime')
    helper, types = onnx.helper, onnx.TensorProto
    tensors = (('a', types.UINT8), ('b', types.INT8), ('c', types.INT32))
    *inputs, output = (helper.make_tensor_value_info(*t, [16, 16]) for t in tensors)
    node = helper.make_node('MatMulInteger', ['a', 'b'], ['c'])
    graph = helper.make_graph([node], 'product', inputs, [output])
    opsets = [helper.make_opsetid('', 13)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=['CPUExecutionProvider']
    )
    a, b = np.full((16, 16), 255, np.uint8), np.full((16, 16), 127, np.int8)
    (product,) = session.run(None, {'a': a, 'b': b})
    return bool((product != 16 * 255 * 127).any())


def use_onnx(model: nn.Module, network: OnnxNetwork) -> nn.Module:
    """Lets ``network`` compute features and head of ``model``, in place; returns it.

    Preprocessing, decoding, NMS and the second stage of a two-stage detector stay the
    model's, so that its test loop and evaluator run as ever. Of a file that is a whole
    detector loading and resizing alone do.

    Args:
        model: Built from the config, in evaluation. It needs the weights of what comes
            behind the file alone: those of the RoI head of a two-stage detector.
        network: Of a model of the same class.

    Raises:
        ValueError: The file is of another class of models.
    """
    exported, name = network.about['model'], type(model).__name__
    if exported != name:
        raise ValueError(
            f'ONNX model: it was exported from a {exported}; the model of the config '
            f'is a {name}'
        )
    if network.about.get('end_to_end'):
        return _replace_predict(model, network)
    return onnx_cut.replace(model, network)


def _replace_predict(model: nn.Module, network: OnnxNetwork) -> nn.Module:
    """Lets a file that is a whole detector predict in place of ``model``."""
    from mmengine.structures import InstanceData

    normalizes = network.about['normalize']
    if normalizes:  # the file does both
        model.data_preprocessor._enable_normalize = False
        model.data_preprocessor._channel_conversion = False

    def predict(images: Tensor, samples: list, rescale: bool = True) -> list:
        results = []
        for image, sample in zip(images, samples, strict=True):
            if normalizes:
                height, width = sample.img_shape[:2]
                image = image[:, :height, :width]  # it pads, too
            boxes, scores, labels = network(image[None]).values()
            if rescale:
                boxes = boxes / boxes.new_tensor(sample.scale_factor).repeat(2)
            results.append(InstanceData(bboxes=boxes, scores=scores, labels=labels))
        return model.add_pred_to_datasample(samples, results)

    model.predict = predict
    return model


def _about(metadata: dict[str, str], path: str | Path) -> dict[str, Any]:
    if FORMAT not in metadata:
        raise ValueError(
            f'ONNX model: {path} was not written by this package; accepted is a file '
            'of tools/export.py --format onnx'
        )
    about = strict_json(metadata[FORMAT])
    kinds = dict(
        version=int, model=str, input_shape=list, policy=dict, outputs=(list, dict, str)
    )
    for key, kind in kinds.items():
        value = about.get(key) if isinstance(about, dict) else None
        if not isinstance(value, kind):
            raise ValueError(
                f'ONNX model: {path} is damaged: {key}: found {value!r:.60}'
            )
    if about['version'] > VERSION:
        raise ValueError(
            f'ONNX model: {path} has format version {about["version"]}; this mmmpq '
            f'reads up to {VERSION}'
        )
    return about


def _filled(names: Any, tensors: dict[str, Tensor]) -> Any:
    """``names`` with the tensors in their places."""
    if isinstance(names, dict):
        return {key: _filled(value, tensors) for key, value in names.items()}
    if isinstance(names, list):
        return [_filled(value, tensors) for value in names]
    return None if names is None else tensors[names]
