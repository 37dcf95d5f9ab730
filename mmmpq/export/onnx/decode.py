"""Boxes of the maps of a dense head, in operators that a graph has."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torchvision.ops import nms

from mmmpq.export.onnx import cut as onnx_cut

OUTPUTS = 'boxes', 'scores', 'labels'
LIKE = 'RetinaHead, FCOSHead, ATSSHead, RTMDetHead and YOLOXHead'
# What MMDetection's batched_nms and its nms take that changes nothing but their pace.
NMS_KEYS = {'type', 'iou_threshold', 'class_agnostic', 'split_thr'}


class _NonMaxSuppression(Function):
    """Of boxes (1, n, 4) and scores (1, 1, n), rows (image, class, box), best first."""

    @staticmethod
    def forward(ctx, boxes, scores, most, overlap, floor):
        passing = (scores[0, 0] > floor).nonzero()[:, 0]
        indices = passing[nms(boxes[0, passing], scores[0, 0, passing], overlap)][:most]
        return torch.stack([indices * 0, indices * 0, indices], 1)

    @staticmethod
    def symbolic(g, boxes, scores, most, overlap, floor):
        integer = g.op('Constant', value_t=torch.tensor([most]))
        floats = [g.op('Constant', value_t=torch.tensor([v])) for v in (overlap, floor)]
        return g.op('NonMaxSuppression', boxes, scores, integer, *floats)


class Decoding(nn.Module):
    """What MMDetection makes of a dense head's maps of one image: boxes after NMS.

    The priors, the coder and the settings are the head's own. In place of lists as
    long as what passes ``score_thr`` there are the ``nms_pre`` best of each level,
    always as many, of which NMS takes those that pass.

    Args:
        model: A one-stage detector in evaluation.
        sizes: (H, W) of the maps of each level.
        size: (H, W) of the image in pixels, which boxes are cut to.

    Raises:
        ValueError: As of :func:`check_decodable`.
    """

    def __init__(
        self,
        model: nn.Module,
        sizes: Sequence[tuple[int, int]],
        size: tuple[int, int],
    ) -> None:
        super().__init__()
        self.by_anchor = check_decodable(model)
        self.head = onnx_cut.head_of(model)
        self.cfg = self.head.test_cfg
        strides = {'with_stride': True} if self.by_anchor else {}
        self.priors = self.head.prior_generator.grid_priors(
            sizes, device='cpu', **strides
        )
        self.size = size

    def forward(self, *maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            maps: (1, C, H, W), in the order of the head's outputs: class scores of
                each level, box predictions of each, then factors or objectness.

        Returns:
            (n, 4) corners x1, y1, x2, y2 in pixels; (n,) scores, falling; (n,) labels.
        """
        count = len(self.priors)
        rows = [m[0].permute(1, 2, 0).flatten(0, 1) for m in maps]
        kinds = [rows[i : i + count] for i in range(0, len(rows), count)]
        if self.by_anchor:
            boxes, scores, labels, valid = self._anchors(*map(torch.cat, kinds))
        else:
            boxes, scores, labels, valid = self._pairs(*kinds)
        shifted = boxes
        if not self.cfg.nms.get('class_agnostic', False):  # labels lie side by side
            top = torch.where(valid[:, None], boxes, -1e9).amax()
            shifted = boxes + labels[:, None].to(boxes) * (top + 1)
        indices = _NonMaxSuppression.apply(
            shifted[None],
            torch.where(valid, scores, -1.0)[None, None],
            len(scores) if self.by_anchor else int(self.cfg.max_per_img),
            float(self.cfg.nms.iou_threshold),
            -0.5,
        )[:, 2]
        return boxes[indices], scores[indices], labels[indices]

    def _anchors(self, classes: Tensor, deltas: Tensor, objectness: Tensor) -> tuple:
        """Of each prior its best class, as YOLOXHead does."""
        best, labels = classes.sigmoid().max(dim=1)
        objectness = objectness[:, 0].sigmoid()
        boxes = self.head._bbox_decode(torch.cat(self.priors), deltas)
        scores = best * objectness
        return boxes, scores, labels, scores >= self.cfg.score_thr

    def _pairs(
        self,
        classes: list[Tensor],
        deltas: list[Tensor],
        factors: Sequence[Tensor] = (),
    ) -> tuple:
        """The best pairs of a prior and a class, as BaseDenseHead does."""
        width = self.head.cls_out_channels
        encoded = self.head.bbox_coder.encode_size
        parts = []
        for level, priors in enumerate(self.priors):
            scores = classes[level].reshape(-1, width)
            if self.head.use_sigmoid_cls:
                scores = scores.sigmoid()
            else:
                scores = scores.softmax(-1)[:, :-1]
            priors_of = len(priors)
            labels_of = scores.shape[1]
            most = min(int(self.cfg.nms_pre), priors_of * int(labels_of))
            scores, pairs = scores.flatten().topk(most)
            at = torch.div(pairs, int(labels_of), rounding_mode='floor')
            factor = factors[level].flatten()[at].sigmoid() if factors else None
            parts.append(
                (
                    priors[at],
                    deltas[level].reshape(-1, encoded)[at],
                    scores if factor is None else scores * factor,
                    pairs - at * int(labels_of),
                    scores > self.cfg.get('score_thr', 0),
                )
            )
        priors, deltas, scores, labels, valid = map(torch.cat, zip(*parts, strict=True))
        boxes = self.head.bbox_coder.decode(priors, deltas)
        if getattr(self.head.bbox_coder, 'clip_border', True):
            height, width = self.size
            ends = boxes.new_tensor([width, height, width, height])
            boxes = torch.minimum(boxes.clamp(min=0), ends)
        smallest = self.cfg.get('min_bbox_size', -1)
        if smallest >= 0:
            valid = valid & (boxes[:, 2:] - boxes[:, :2] > smallest).all(dim=1)
        return boxes, scores, labels, valid


def check_decodable(model: nn.Module) -> bool:
    """Whether the head of ``model`` decodes as YOLOXHead; else as BaseDenseHead.

    Raises:
        ValueError: Boxes of ``model`` cannot be written as a graph. The sentence names
            the key, what was found and what is accepted.
    """
    kind = type(model).__name__
    if hasattr(model, 'roi_head'):
        raise ValueError(
            f'--end-to-end: found {kind}, which has two stages; accepted are detectors '
            f'of one, with a head that decodes as {LIKE} do'
        )
    if not onnx_cut.is_detector(model):
        raise ValueError(
            f'--end-to-end: found {kind}, which predicts no boxes; accepted are '
            f'one-stage detectors, with a head that decodes as {LIKE} do'
        )
    head = onnx_cut.head_of(model)
    by_anchor = _decodes_by_anchor(head)
    _check_test_cfg(head.test_cfg, by_anchor)
    return by_anchor


def _decodes_by_anchor(head: nn.Module) -> bool:
    from mmdet.models.dense_heads import YOLOXHead
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead

    ways = {
        YOLOXHead: ('predict_by_feat', '_bbox_decode', '_bbox_post_process'),
        BaseDenseHead: (
            'predict_by_feat',
            '_predict_by_feat_single',
            '_bbox_post_process',
        ),
    }
    custom = getattr(getattr(head, 'loss_cls', None), 'custom_cls_channels', False)
    for kind, methods in ways.items():
        if (
            isinstance(head, kind)
            and not custom
            and all(
                getattr(type(head), name) is getattr(kind, name) for name in methods
            )
        ):
            return kind is YOLOXHead
    raise ValueError(
        f'--end-to-end: model.bbox_head.type: found {type(head).__name__}, which '
        f'decodes in a way of its own; accepted are heads that decode as {LIKE} do'
    )


def _check_test_cfg(cfg: Mapping[str, Any] | None, by_anchor: bool) -> None:
    options = cfg.get('nms') if cfg else None
    if not options or 'iou_threshold' not in options:
        raise ValueError(
            f'--end-to-end: model.test_cfg.nms: found {options!r}; accepted is '
            "dict(type='nms', iou_threshold=0.5) or the like"
        )
    if options.get('type', 'nms') != 'nms' or set(options) - NMS_KEYS:
        raise ValueError(
            f'--end-to-end: model.test_cfg.nms: found {dict(options)!r}, for which '
            f"ONNX has no operator; accepted is type='nms', of "
            f'{", ".join(sorted(NMS_KEYS))}'
        )
    keys = ('score_thr',) if by_anchor else ('nms_pre', 'max_per_img')
    for key in keys:
        value = cfg.get(key)
        if not isinstance(value, (int, float)) or value < (key != 'score_thr'):
            raise ValueError(
                f'--end-to-end: model.test_cfg.{key}: found {value!r}; accepted is '
                'a positive number'
            )
