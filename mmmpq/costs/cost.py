"""What a layer costs at a precision."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from mmmpq.costs.profile import LayerProfile
from mmmpq.policy import FLOAT, Precision
from mmmpq.registry import COSTS
from mmmpq.units import LADDERS

if TYPE_CHECKING:
    from mmmpq.costs.feeds import Feed


class Cost:
    """A function from (layer, precision) to a number in :attr:`unit`.

    Attributes:
        unit (str): The unit of what is returned.
        units (dict): Every unit that a budget may be written in, in multiples of
            ``unit``, from small to large.
        needs (tuple): What it reads of a layer's profile. A net that is elastic in its
            architecture knows ``macs`` and ``weights`` alone.
        bits_per_unit (float): 8 where the unit is a byte.
        said (dict): What the file of a policy says of it beside type and unit.
        pairwise (bool): Whether :meth:`between` is ever anything but 0.
    """

    unit: str
    units: dict[str, float]
    needs: tuple[str, ...] = ('macs', 'weights', 'activations', 'shape')
    bits_per_unit = 1.0
    said: dict[str, str] = {}
    pairwise = False

    def __call__(self, layer: LayerProfile, precision: Precision) -> float:
        raise NotImplementedError

    def between(
        self,
        feed: 'Feed',
        first: LayerProfile,
        second: LayerProfile,
        first_precision: Precision,
        second_precision: Precision,
    ) -> float:
        """What two layers cost together beyond what each does by itself.

        Args:
            feed: What the first hands on to the second.
        """
        return 0.0


@COSTS.register_module()
class BOPs(Cost):
    """Bit operations: ``w_bits * a_bits * macs``, shared modules once per call."""

    unit = 'BOPs'
    needs = ('macs',)
    units = LADDERS['BOPs']

    def __call__(self, layer: LayerProfile, precision: Precision) -> float:
        return precision.w_bits * precision.a_bits * layer.macs


class _Bytes(Cost):
    unit = 'B'
    bits_per_unit = 8.0
    units = LADDERS['B'] | {f'{p}iB': 1024.0**i for i, p in enumerate('KMG', 1)}


@COSTS.register_module()
class WeightBytes(_Bytes):
    """Packed weights: ``w_bits * weights / 8`` bytes, shared modules once."""

    needs = ('weights',)

    def __call__(self, layer: LayerProfile, precision: Precision) -> float:
        return precision.w_bits * layer.weights / 8


@COSTS.register_module()
class ActivationBytes(_Bytes):
    """Inputs read: ``a_bits * activations / 8`` bytes, once per call."""

    needs = ('activations',)

    def __call__(self, layer: LayerProfile, precision: Precision) -> float:
        return precision.a_bits * layer.activations / 8


def total_cost(
    cost: Cost,
    profiles: Iterable[LayerProfile],
    precision_of: Mapping[str, Precision],
    feeds: Iterable['Feed'] = (),
) -> float:
    """Cost of a whole net; layers that are not in ``precision_of`` are float.

    Args:
        feeds: What layers hand on, of a cost that is pairwise.
    """
    layers = {p.name: p for p in profiles}
    total = sum(cost(p, precision_of.get(n, FLOAT)) for n, p in layers.items())
    for feed in feeds:
        ends = feed.first, feed.second
        precisions = (precision_of.get(n, FLOAT) for n in ends)
        total += cost.between(feed, *(layers[n] for n in ends), *precisions)
    return float(total)
