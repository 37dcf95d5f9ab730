"""Models, batches and steps that :mod:`step_time` compares."""

import time
import warnings
from pathlib import Path

import numpy as np
import torch
import torchvision
from mmengine import Config
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData
from torch.ao.quantization import get_default_qat_qconfig_mapping
from torch.ao.quantization.quantize_fx import prepare_qat_fx

from mmmpq.models import calibrate
from mmmpq.search import SearchSpace
from mmmpq.search.logits import task_gradient

ROOT = Path(__file__).resolve().parents[1]
# Name -> config, (batch, height, width).
INPUTS = {
    'resnet18': ('mmpretrain::resnet/resnet18_8xb32_in1k.py', (8, 224, 224)),
    'resnet50': ('mmpretrain::resnet/resnet50_8xb32_in1k.py', (8, 224, 224)),
    'mobilenet_v2': (
        'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py',
        (8, 224, 224),
    ),
    'retinanet_shapes': ('configs/float/retinanet_shapes_float.py', (8, 128, 128)),
    'retinanet_r50': ('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', (1, 320, 320)),
    'faster_rcnn_r50': (
        'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
        (1, 320, 320),
    ),
}
# Number of candidates -> widths of weights, of activations.
GRIDS = {
    2: ((2, 4), (4,)),
    4: ((2, 4), (2, 4)),
    6: ((2, 3, 4), (2, 4)),
    8: ((2, 3, 4, 8), (2, 4)),
    12: ((2, 3, 4, 8), (2, 3, 4)),
}
JOINT = 11  # candidates of configs/_base_/bpnas.py: no grid, one choice a layer
MIXED = ('composite', 'outputs', 'sampled', 'own weights')
STEPS = ('weight', 'architecture', 'iteration')
# torch's own quantization-aware training, of the backbone, at 8 bits.
QAT = 'torch QAT'


def supernet(variant: str, candidates: int) -> dict:
    """``quant`` of a supernet with so many candidates."""
    if candidates == JOINT:
        pairs = Config.fromfile(ROOT / 'configs/_base_/bpnas.py').candidates
    else:
        w_bits, a_bits = GRIDS[candidates]
        pairs = [(w, a) for w in w_bits for a in a_bits]
    quant = dict(candidates=pairs, mixing=variant)
    if variant == 'own weights':
        quant.update(mixing='outputs', own_weights=True)
        quant['relaxation'] = dict(type='GumbelSoftmax')
        quant['w_quantizer'] = dict(type='DoReFaQuantizer')
        quant['a_quantizer'] = dict(type='PACTQuantizer')
    elif variant == 'composite':
        quant['relaxation'] = dict(type='Softmax', factorised=candidates != JOINT)
    return quant


def quant_of(variant: str, candidates: int) -> dict | None:
    if variant in ('float', QAT):
        return None
    if variant in MIXED:
        return supernet(variant, candidates)
    return dict(policy=variant)


def is_detector(model: str) -> bool:
    return model.startswith(('retinanet', 'faster_rcnn'))


def build(model: str, quant: dict | None) -> torch.nn.Module:
    """The toolbox's model with random weights; quantized if ``quant`` is given."""
    config = INPUTS[model][0]
    cfg = get_config(config) if '::' in config else Config.fromfile(ROOT / config)
    cfg = cfg.model
    init_default_scope('mmdet' if is_detector(model) else 'mmpretrain')
    if 'backbone' in cfg:
        cfg.backbone.init_cfg = None  # no download
    if 'data_preprocessor' not in cfg:
        cfg.data_preprocessor = dict(type='mmpretrain.ClsDataPreprocessor')
    if quant is not None:
        cfg.update(base_type=cfg.type, type='mmmpq.QuantModel', quant=quant)
    torch.manual_seed(0)
    return MODELS.build(cfg)


def make_batch(model: str, size: tuple) -> dict:
    """What the dataloader would give: random images with labels or boxes."""
    n, h, w = size
    rng = np.random.default_rng(0)
    images = [torch.tensor(rng.integers(0, 256, (3, h, w), np.uint8)) for _ in range(n)]
    samples = []
    for i in range(n):
        if not is_detector(model):
            from mmpretrain.structures import DataSample

            samples.append(DataSample().set_gt_label(i % 10))
            continue
        from mmdet.structures import DetDataSample

        corners = rng.random((4, 2)) * (w / 2, h / 2)
        boxes = np.concatenate([corners, corners + (w / 3, h / 3)], 1)
        gt = InstanceData(
            bboxes=torch.tensor(boxes, dtype=torch.float32), labels=torch.arange(4)
        )
        meta = dict(img_shape=(h, w), ori_shape=(h, w), scale_factor=(1.0, 1.0))
        samples.append(DetDataSample(metainfo=meta, gt_instances=gt))
    return dict(inputs=images, data_samples=samples)


class Step:
    """One step of one variant: call it as often as wanted.

    Args:
        model: A name in ``INPUTS``.
        variant: 'float', ``QAT``, a uniform precision, or one of ``MIXED``.
        step: 'weight': forward, backward, SGD. 'architecture': forward and gradient of
            the logits. 'iteration': the latter, then the former.
        size: (batch, height, width).
        candidates: Of a supernet.
        device: 'cpu' or 'cuda'.
        dtype: Of autocast; None for none.
    """

    def __init__(
        self,
        model: str,
        variant: str,
        step: str,
        size: tuple,
        candidates: int = 12,
        device: str = 'cpu',
        dtype: torch.dtype | None = None,
    ) -> None:
        quant = quant_of(variant, candidates)
        self.model = build(model, quant)
        if variant == QAT:
            self.model.backbone = QATBackbone(model, size)
        self.model = self.model.to(device).train()
        self.batch = make_batch(model, size)
        self.step, self.device, self.dtype = step, device, dtype
        if quant is not None:
            calibrate(self.model, [self.batch])
        self.space = SearchSpace(self.model) if variant in MIXED else None
        params = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(params, lr=1e-4, momentum=0.9)

    def __call__(self) -> dict[str, float]:
        """Seconds of 'forward', 'backward' and in 'total', without making the batch."""
        data = self.data()
        marks = []
        for kind in self.kinds:
            marks.append(self._now())
            loss = self.forward(kind, data)
            marks.append(self._now())
            self.backward(kind, loss)
            del loss  # and with it what of its graph is still there
            marks.append(self._now())
            self.update(kind)
            marks.append(self._now())
        if self.device == 'cuda':
            torch.cuda.synchronize()
            marks = [marks[0].elapsed_time(mark) / 1e3 for mark in marks]
        parts = [marks[i : i + 4] for i in range(0, len(marks), 4)]
        return dict(
            forward=sum(p[1] - p[0] for p in parts),
            backward=sum(p[2] - p[1] for p in parts),
            total=sum(p[3] - p[0] for p in parts),
        )

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of the passes that the step consists of."""
        return STEPS[1::-1] if self.step == 'iteration' else (self.step,)

    def data(self) -> dict:
        """The batch on the device, as the model takes it."""
        return self.model.data_preprocessor(self.batch, True)

    def forward(self, kind: str, data: dict) -> torch.Tensor:
        if self.space is not None:  # as SearchHook does
            self.handed = self.space.hand(learn=kind == 'architecture')
        with torch.autocast(self.device, self.dtype, enabled=bool(self.dtype)):
            losses = self.model._run_forward(data, mode='loss')
        return self.model.parse_losses(losses)[0]

    def backward(self, kind: str, loss: torch.Tensor) -> None:
        if kind == 'architecture':
            inputs = [*self.handed.leaves, *self.space.logits]
            grads = torch.autograd.grad(loss, inputs, allow_unused=True)
            count = len(self.handed.leaves)
            logits = self.space.logits
            task_gradient(logits, self.handed, grads[:count], grads[count:])
        else:
            self.optimizer.zero_grad()
            loss.backward()

    def update(self, kind: str) -> None:
        if kind == 'weight':
            self.optimizer.step()

    def _now(self) -> float | torch.cuda.Event:
        """The time; on a GPU its own, which the host is not kept waiting for."""
        if self.device != 'cuda':
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class QATBackbone(torch.nn.Module):
    """torchvision's backbone of the same layers with torch's own fake quantization.

    Not the toolbox's: torch.fx, which finds where to quantize, cannot trace those.
    """

    def __init__(self, model: str, size: tuple) -> None:
        super().__init__()
        net = torchvision.models.get_model(model)
        layers = net.features if hasattr(net, 'features') else [*net.children()][:-2]
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            self.layers = prepare_qat_fx(
                torch.nn.Sequential(*layers).train(),
                get_default_qat_qconfig_mapping('x86'),
                (torch.randn(1, 3, *size[1:]),),
            )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.layers(x),)
