import pytest
import torch
from torch import nn

from mmmpq.models import quantize
from mmmpq.search import SearchSpace


class Three(nn.Module):
    """A stem, two searchable convs, and a head; what is called first comes last.

    At 8 x 8 the convs have 9·4·6·64 = 13824 and 9·2·4·64 = 4608 MACs.
    """

    def __init__(self):
        super().__init__()
        self.late = nn.Conv2d(4, 6, 3, padding=1)
        self.stem = nn.Conv2d(3, 2, 3, padding=1)
        self.early = nn.Conv2d(2, 4, 3, padding=1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        return self.fc(self.late(self.early(self.stem(x))).mean((2, 3)))


@pytest.fixture
def net():
    """Build (model, space) with random logits."""

    def build(rest='float', **quant):
        """``rest``: whether stem and head are float, or fixed at 8/8."""
        candidates = [(2, 2), (2, 3), (3, 2), (3, 3)]
        fixed = {'late': None, 'early': None}
        if rest == 'float':
            quant['exclude'] = ['stem', 'fc']
        else:
            fixed.update(stem=(8, 8), fc=(8, 8))
        model = quantize(
            Three(), candidates=candidates, groups='layer', fixed=fixed, **quant
        )
        space = SearchSpace(model)
        torch.manual_seed(0)
        with torch.no_grad():
            for logits in space.logits:
                logits.normal_()
        return model, space

    return build
