"""Energy of the arithmetic as a cost to search under."""

from mmmpq.costs import Cost, LayerProfile
from mmmpq.policy import SKIP, Precision
from mmmpq.registry import COSTS


@COSTS.register_module()
class Energy(Cost):
    """Joules of the multiply-accumulates: MACs · (multiply · w a / 64 + accumulate).

    A multiplier's energy grows with the product of its widths; the sum has 32 bits. The
    defaults are those of 45 nm, 0.9 V: 0.2 pJ for 8 x 8 bits, 0.1 pJ for the addition.

    Source: Computing's Energy Problem (and What We Can Do About It), ISSCC 2014.

    Args:
        multiply: pJ of one multiplication of 8 by 8 bits.
        accumulate: pJ of one addition of 32 bits.
    """

    unit = 'J'
    units = dict(pJ=1e-12, nJ=1e-9, uJ=1e-6, mJ=1e-3, J=1.0)

    def __init__(self, multiply: float = 0.2, accumulate: float = 0.1) -> None:
        self.multiply = multiply
        self.accumulate = accumulate

    def __call__(self, layer: LayerProfile, precision: Precision) -> float:
        if precision == SKIP:
            return 0.0
        product = precision.w_bits * precision.a_bits / 64
        return 1e-12 * layer.macs * (self.multiply * product + self.accumulate)
