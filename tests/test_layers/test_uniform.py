"""The relaxation that samples all candidates alike."""

import torch

from mmmpq.layers import UniformSampling
from mmmpq.policy import Precision

CANDIDATES = [Precision(b, b) for b in (2, 3, 4)]


def test_probabilities_are_uniform_whatever_the_logits():
    relaxation = UniformSampling(CANDIDATES)
    with torch.no_grad():
        relaxation.logits.copy_(torch.tensor([9.0, 0.0, -9.0]))
    expected = torch.full((3,), 1 / 3)
    torch.testing.assert_close(relaxation.probs(), expected)
    torch.testing.assert_close(relaxation.mixture(), expected)


def test_paths_are_drawn_alike_and_repeat():
    relaxation = UniformSampling(CANDIDATES)

    def draws():
        generator, found = torch.Generator().manual_seed(0), []
        for _ in range(900):
            relaxation.draw(generator)
            found.append(relaxation.choice)
        return found

    counts = [draws().count(j) for j in range(3)]
    assert sum(counts) == 900 and all(abs(c - 300) < 60 for c in counts)
    assert draws() == draws()


def test_checkpoints_of_other_candidates_load():
    relaxation = UniformSampling(CANDIDATES)
    relaxation.load_state_dict(UniformSampling(CANDIDATES[:2]).state_dict())
    relaxation.load_state_dict({})
    assert relaxation.probs().shape == (3,)
