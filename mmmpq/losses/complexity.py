"""The complexity penalty of EdMIPS."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mmmpq.losses.expected_cost import ExpectedCost, Pricing, checked
from mmmpq.policy import Precision, near
from mmmpq.registry import LOSSES

NORMALISERS = ('first', 'uniform', 'none')


@LOSSES.register_module()
class ComplexityPenalty(ExpectedCost):
    """η · E[cost of the searchable layers] / normaliser.

    With BOPs and factorised logits this is η · Σ_l MAC_l E[b_w] E[b_a] / MAC_first.

    Source: Rethinking Differentiable Search for Mixed-Precision Neural Networks, CVPR
    2020, arXiv 2004.05795, with the normaliser 'first' and, for ImageNet, η = .00335
    (ResNet-18), .00015 (ResNet-50), .00045 (GoogLeNet), .0015 (Inception-V3). There the
    cost is taken at the shape of the last batch; here at a reference input.

    Args:
        eta: η; there is no default, as it means something else in every net.
        cost: Config of the cost and its reference input.
        normaliser: 'first', the cost at 1/1 bit (for BOPs: the MACs) of the searchable
            layer that the network calls first; 'uniform', that of all searchable layers
            at the precision ``uniform``, which makes η mean the same in every net;
            'none', 1.
        uniform: A precision such as 'W4A4', for that normaliser.

    Raises:
        ValueError: One of them is missing or not accepted.
    """

    name = 'complexity'

    def __init__(
        self,
        eta: float | None = None,
        cost: Mapping[str, Any] | None = None,
        normaliser: str = 'first',
        uniform: Any = None,
    ) -> None:
        super().__init__(dict(type='BOPs') if cost is None else cost)
        self.eta = checked('ComplexityPenalty.eta', eta)
        if normaliser not in NORMALISERS:
            raise ValueError(
                f'ComplexityPenalty.normaliser: found {normaliser!r}; '
                f'{near(str(normaliser), NORMALISERS)}; accepted are {NORMALISERS}'
            )
        if (uniform is not None) != (normaliser == 'uniform'):
            raise ValueError(
                f'ComplexityPenalty.uniform: found {uniform!r}; accepted is a '
                "precision such as 'W4A4' with normaliser='uniform', else nothing"
            )
        self.normaliser = normaliser
        self.uniform = uniform
        if uniform is not None:
            self.uniform = Precision.parse(uniform, 'ComplexityPenalty.uniform')

    def bind(self, pricing: Pricing) -> None:
        """Has the candidates priced and works out the normaliser.

        Raises:
            ValueError: The normaliser is 0: no searchable layer is ever called.
        """
        super().bind(pricing)
        cost, layers = self.table.cost, self.table.searched
        self.scale = 1.0
        if self.normaliser == 'first':  # profiles come in the order of the calls
            self.scale = float(cost(layers[0], Precision(1, 1)))
        elif self.normaliser == 'uniform':
            self.scale = float(sum(cost(layer, self.uniform) for layer in layers))
        if not self.scale > 0:
            raise ValueError(
                f'ComplexityPenalty.normaliser: {self.normaliser!r} is {self.scale} '
                f'{cost.unit} in this model; accepted is one that costs something'
            )

    def forward(
        self, probs: Sequence[Tensor], ratios: Tensor, progress: float
    ) -> Tensor:
        return (self.expected(probs) * (self.eta / self.scale)).float()
