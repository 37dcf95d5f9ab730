"""When two runs over the same images count as equal."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmmpq.export.onnx.agreement import Predictions, agreement, recording

BOXES = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 60]])
SCORES = torch.tensor([0.9, 0.5, 0.2])
LABELS = torch.tensor([0, 1, 0])


def compare(boxes=BOXES, scores=SCORES, labels=LABELS, keep=3, **limits):
    other = boxes[:keep], scores[:keep], labels[:keep]
    first = Predictions([(BOXES, SCORES, LABELS)])
    found = agreement(first, Predictions([other]), **limits)
    back = agreement(Predictions([other]), first, **limits)
    assert found.equal == back.equal
    return found


def test_the_same_in_any_order():
    order = torch.tensor([2, 0, 1])
    found = compare(BOXES[order], SCORES[order], LABELS[order])
    assert (found.images, found.equal, found.scores, found.near) == (1, 1, 3, 3)
    assert found.largest == 0


def test_small_differences_are_equal_and_large_ones_are_not():
    found = compare(BOXES + 0.1, SCORES + torch.tensor([0.0, 0.009, 0]))
    assert found.equal == 1 and found.largest == pytest.approx(0.009, abs=1e-6)
    found = compare(scores=SCORES + torch.tensor([0.0, 0.03, 0]))
    assert found.equal == 0 and found.near == 2
    assert found.largest == pytest.approx(0.03, abs=1e-6)
    assert compare(BOXES + 3).equal == 0
    assert compare(labels=LABELS + 1).scores == 0


def test_a_missing_detection_counts_unless_its_list_ends_there():
    assert compare(keep=2).equal == 0
    assert compare(keep=2, floor=0.195).equal == 1
    assert compare(keep=2, floor=0.18).equal == 0
    assert compare(keep=0).equal == 0
    full = compare(scores=SCORES + torch.tensor([0.0, 0, 0.005]), most=3)
    assert full.equal == 1
    nothing = Predictions([(BOXES[:0], SCORES[:0], LABELS[:0])])
    assert agreement(nothing, nothing).equal == 1


def test_classes_and_scores():
    first = Predictions([torch.tensor([0.7, 0.3]), torch.tensor([0.51, 0.49])])
    second = Predictions([torch.tensor([0.695, 0.305]), torch.tensor([0.49, 0.51])])
    found = agreement(first, second)
    assert (found.images, found.equal, found.scores, found.near) == (2, 1, 4, 2)
    assert found.largest == pytest.approx(0.02, abs=1e-6)


def test_recording_a_model():
    class Sample(dict):
        pred_score = torch.tensor([0.2, 0.8])

    class Model(nn.Module):
        def predict(self, images, samples):
            return samples

    model, seen = Model(), []
    with recording(model, seen.append) as found:
        out = model.predict(torch.zeros(2, 3, 4, 4), [Sample(), Sample()])
    assert len(out) == len(found.images) == len(found.milliseconds) == 2
    assert seen == [2] and 'predict' not in vars(model)

    class Detected(dict):
        pred_instances = SimpleNamespace(bboxes=BOXES, scores=SCORES, labels=LABELS)

    with recording(model, seen.append) as found:
        model.predict(torch.zeros(1, 3, 4, 4), [Detected(pred_instances=1)])
    assert [t.shape[0] for t in found.images[0]] == [3, 3, 3]
