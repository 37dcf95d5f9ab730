"""Non-maximum suppression of boxes (x1, y1, x2, y2): hard, soft, and with groups."""

import numpy as np
import torch
import torchvision
from torch import Tensor


def nms(bboxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes that are kept, by falling score.

    A box goes when its IoU with a better one that is kept is above the threshold. Of
    equal scores the first is better; a compiled mmcv leaves that to torch's unstable
    sort, whose order depends on the processor.

    Args:
        bboxes: (N, 4).
        scores: (N,).
        iou_threshold: Compared in float32, as mmcv does.
        offset: 0 or 1; a box is ``x2 - x1 + offset`` wide.
    """
    boxes = bboxes.float()
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    threshold = float(np.float32(iou_threshold))
    return torchvision.ops.nms(boxes, scores.float(), threshold)


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """For every box that is kept, by falling score: itself, then those that it removes.

    Args:
        dets: (N, 5), the last column is the score.
        iou_threshold: A box at it or above it goes.
    """
    boxes = dets.detach().float().cpu().numpy()
    order = np.argsort(-boxes[:, 4], kind='stable')
    groups = []
    while len(order):
        first, others = order[0], order[1:]
        gone = _iou(boxes[first], boxes[others], 0) >= np.float32(iou_threshold)
        groups.append([int(first), *others[gone].tolist()])
        order = others[~gone]
    return groups


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS: scores of boxes fall with their IoU with better ones.

    *Soft-NMS: Improving Object Detection With One Line of Code*, 2017, arXiv
    1704.04503.
    The better box is taken, every other score is multiplied by w(IoU), boxes below
    ``min_score`` go, and so on. Ties go to the box that comes first in an array from
    which boxes are removed by putting the last one in their place, as in mmcv.

    Args:
        boxes: (N, 4) on the CPU.
        scores: (N,) on the CPU.
        dets: (N, 5) on the CPU, takes the boxes with their new scores, best first.
        method: 0 w = 0 from ``iou_threshold`` on; 1 (linear) w = 1 - IoU from there on;
            2 (gaussian) w = exp(-IoU² / sigma).
        offset: 0 or 1; a box is ``x2 - x1 + offset`` wide.

    Returns:
        The indices of the boxes in ``dets``.
    """
    rows = np.concatenate(
        [boxes.detach().float().numpy(), scores.detach().float().numpy()[:, None]], 1
    )
    index = np.arange(len(rows))
    i = 0
    while i < len(rows):
        best = i + _first_best(rows[i:, 4])
        rows[[i, best]] = rows[[best, i]]
        index[[i, best]] = index[[best, i]]
        i += 1
        iou = _iou(rows[i - 1], rows[i:], offset)
        rows[i:, 4] *= _soft_weight(iou, iou_threshold, sigma, method)
        left = _filled(~(rows[i:, 4] < np.float32(min_score))) + i
        rows = np.concatenate([rows[:i], rows[left]])
        index = np.concatenate([index[:i], index[left]])
    dets[: len(rows)] = torch.from_numpy(rows)
    return torch.from_numpy(index)


def _first_best(scores: np.ndarray) -> int:
    """The first maximum. NaN, from boxes without an area, is better than none."""
    if np.isnan(scores[0]):
        return 0
    return int(np.argmax(np.nan_to_num(scores, nan=-np.inf)))


def _soft_weight(
    iou: np.ndarray, threshold: float, sigma: float, method: int
) -> np.ndarray:
    if method == 2:
        return np.exp(-(iou * iou) / np.float32(sigma))
    near = iou >= np.float32(threshold)
    return np.where(near, 1 - iou if method == 1 else 0, 1).astype(np.float32)


def _filled(keep: np.ndarray) -> np.ndarray:
    """Where the kept ones stand when each gap takes the last of them."""
    n = int(keep.sum())
    places = np.arange(n)
    places[~keep[:n]] = np.flatnonzero(keep[n:])[::-1] + n
    return places


def _iou(box: np.ndarray, others: np.ndarray, offset: int) -> np.ndarray:
    """IoU of ``box`` (4 or more,) with ``others`` (N, 4 or more), in float32."""
    one = np.float32(offset)
    low = np.maximum(box[:2], others[:, :2])
    high = np.minimum(box[2:4], others[:, 2:4])
    inter = np.maximum(high - low + one, 0).prod(1)
    area = (box[2:4] - box[:2] + one).prod()
    areas = (others[:, 2:4] - others[:, :2] + one).prod(1)
    with np.errstate(divide='ignore', invalid='ignore'):  # boxes without an area
        return inter / (area + areas - inter)
