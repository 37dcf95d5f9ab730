"""How far two runs of a toolbox model over the same images agree."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

SCORE = 1e-2
OVERLAP = 0.9


@dataclass
class Predictions:
    """What a model predicted for each image, and how long that took.

    Attributes:
        images: Of each, the scores of all classes (K,); or boxes (n, 4) in pixels,
            scores (n,) and labels (n,) of the detections; or, as integers, the classes
            of its pixels (H, W).
        milliseconds: For each image, of network, decoding and NMS.
    """

    images: list[Tensor | tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)


@contextlib.contextmanager
def recording(model: nn.Module, step: Callable[[int], None]) -> Iterator[Predictions]:
    """Within it, what ``model.predict`` returns is written down.

    Args:
        model: A toolbox model, unwrapped.
        step: Told of the number of images after each batch.
    """
    predictions = Predictions()
    predict = model.predict

    def recorded(images: Tensor, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        samples = predict(images, *args, **kwargs)
        spent = (time.perf_counter() - start) * 1e3
        predictions.milliseconds += [spent / len(images)] * len(images)
        predictions.images += [_prediction(sample) for sample in samples]
        step(len(images))
        return samples

    model.predict = recorded
    try:
        yield predictions
    finally:
        del model.predict


def _prediction(sample: Any) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    if 'pred_sem_seg' in sample:
        return sample.pred_sem_seg.data[0].detach().cpu().short()
    if 'pred_instances' not in sample:
        return sample.pred_score.detach().cpu().clone()
    instances = sample.pred_instances
    values = instances.bboxes, instances.scores, instances.labels
    return tuple(value.detach().cpu().clone() for value in values)


@dataclass
class Agreement:
    """What two runs have in common.

    Attributes:
        images: That both saw.
        equal: Images with equal predictions.
        scores: Compared scores: of each class, or of each detection with a partner; of
            segmentations, pixels.
        near: Those that differ by at most 0.01; pixels of the same class.
        largest: The largest difference of two scores; 1 where two classes differ.
        pixels: Whether these are pixels.
    """

    images: int = 0
    equal: int = 0
    scores: int = 0
    near: int = 0
    largest: float = 0.0
    pixels: bool = False


def agreement(
    first: Predictions, second: Predictions, floor: float = 0.0, most: int = 100
) -> Agreement:
    """Compares two runs image by image.

    Equal are classifications of the same class, and segmentations whose pixels all have
    the same. Equal are detections if each has a
    partner in the other run: of the same label, with IoU of at least 0.9 and a score
    that differs by at most 0.01. One whose score lies within 0.01 of where its list
    ends may lack a partner, for it may have fallen off the other list.

    Args:
        first, second: Of the same images in the same order.
        floor: The score below which the model drops detections.
        most: The most detections that it keeps of an image.
    """
    result = Agreement(images=len(first.images))
    for a, b in zip(first.images, second.images, strict=True):
        if isinstance(a, Tensor) and not a.is_floating_point():
            differences, result.pixels = (a != b).float(), True
            equal = not differences.any()
        elif isinstance(a, Tensor):
            equal, differences = bool(a.argmax() == b.argmax()), (a - b).abs()
        else:
            equal, differences = _compare_detections(a, b, floor, most)
        result.equal += equal
        result.scores += differences.numel()
        result.near += int((differences <= SCORE).sum())
        if differences.numel():
            result.largest = max(result.largest, float(differences.max()))
    return result


def _compare_detections(
    a: Sequence[Tensor], b: Sequence[Tensor], floor: float, most: int
) -> tuple[bool, Tensor]:
    """Whether they are equal, and the differences of the scores of partners."""
    end = max([floor, *(float(s.min()) for _, s, _ in (a, b) if 0 < len(s) >= most)])
    equal, differences = True, []
    for (boxes, scores, labels), (others, their_scores, their_labels) in (a, b), (b, a):
        partner = labels[:, None] == their_labels
        partner &= box_iou(boxes, others) >= OVERLAP
        difference = (scores[:, None] - their_scores).abs()
        nearest = scores.new_full((len(scores), 1 + len(others)), float('inf'))
        nearest[:, 1:] = torch.where(partner, difference, float('inf'))
        nearest = nearest.amin(dim=1)
        equal &= bool((nearest[scores > end + SCORE] <= SCORE).all())
        differences.append(nearest[nearest.isfinite()])
    return equal, differences[0]
