"""How a layer with all candidates of a search computes its output."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmmpq.layers.idle import with_idle
from mmmpq.layers.shares import Shares, select
from mmmpq.policy import SKIP
from mmmpq.registry import MIXINGS


class Mixing:
    """A layer's output from the shares of its candidates.

    A subclass gives :meth:`output`, and says as class attributes what the search has to
    do for it. It is made without arguments, and is the same for every layer.

    Attributes:
        name: Under which it is registered, as in ``quant.mixing``.
        samples: A path is drawn in every iteration. A step of the weights computes that
            path alone; in a step of the logits its one-hot takes the place of p.
        prunes: What has next to no share is left out (:meth:`Relaxation.active`).
        marginals: It mixes by the marginals of the widths.
        own_weights: Each candidate may have a weight of its own.
    """

    name = ''
    samples = False
    prunes = False
    marginals = False
    own_weights = False

    def output(self, layer: nn.Module, x: Tensor, shares: Shares) -> Tensor:
        """The output of ``layer``, a :class:`MixedLayer`.

        Args:
            layer: Has ``candidates``, ``relaxation``, ``a_quantizer``, ``bias``,
                ``mixed_weight``, ``candidate_weight`` and ``compute(x, weight, bias)``.
            x: Its input.
            shares: Coefficients ``layers`` (m,) and, of the widths, ``marginals``.
        """
        raise NotImplementedError


@MIXINGS.register_module(name='composite')
class Composite(Mixing):
    """One conv(Σ_a p(a) Q_a(x), Σ_w p(w) Q_w(W)) with the marginals."""

    marginals = True

    def output(self, layer: nn.Module, x: Tensor, shares: Shares) -> Tensor:
        w_probs, a_probs = shares.marginals
        if layer.own:
            probs = shares.layers.unbind()
            computing = [j for j, c in enumerate(layer.candidates) if c != SKIP]
            weight = sum(probs[j] * layer.candidate_weight(j) for j in computing)
        else:
            weight = layer.mixed_weight(layer.relaxation.w_bits, w_probs)
        x = layer.a_quantizer.mix(x, layer.relaxation.a_bits, a_probs)
        return layer.compute(x, weight, layer.bias)


@MIXINGS.register_module(name='sampled')
class Sampled(Composite):
    """The one path that was drawn; the composite where its gradient is asked for."""

    samples = True
    own_weights = True


@MIXINGS.register_module(name='outputs')
class Outputs(Mixing):
    """Σ_j p_j conv(Q_a(x), Q_w(W)), exactly; one convolution per activation width."""

    prunes = True
    own_weights = True

    def output(self, layer: nn.Module, x: Tensor, shares: Shares) -> Tensor:
        total, probs = None, shares.layers
        active = layer.relaxation.active()
        if active is not None:
            probs = probs / select(probs, active).sum()
        each = probs.unbind() if layer.own else ()
        for a_bits in layer.relaxation.a_bits:
            same = [j for j, c in enumerate(layer.candidates) if c.a_bits == a_bits]
            if active is not None:
                same = [j for j in same if j in active]
            if not same:
                continue
            if layer.own:
                weight = sum(each[j] * layer.candidate_weight(j) for j in same)
            else:
                bits = tuple(layer.candidates[j].w_bits for j in same)
                weight = layer.mixed_weight(bits, probs, same)
            bias = layer.bias if total is None else None
            if total is None and active is not None and torch.is_grad_enabled():
                weight = with_idle(weight, _dropped(layer, active))
            out = layer.compute(layer.a_quantizer(x, a_bits), weight, bias)
            total = out if total is None else total + out
        return total


def _dropped(layer: nn.Module, active: Sequence[int]) -> list[nn.Parameter]:
    """Parameters that may take no part if these candidates alone do."""
    idle = [*layer.w_quantizer.parameters(), *layer.a_quantizer.parameters()]
    if layer.own:
        own = {int(j): list(o.parameters()) for j, o in layer.own.items()}
        for j, candidate in enumerate(layer.candidates):
            if j not in active and candidate != SKIP:
                idle += own.get(j, [layer.weight])
    return idle


def mixing_of(name: str) -> Mixing:
    """The mixing of that name.

    Raises:
        ValueError: There is none; those that there are are listed.
    """
    key = str(name).rpartition('.')[2]
    if key not in MIXINGS.module_dict:
        raise ValueError(
            f'mixing: found {name!r}; accepted are {", ".join(MIXINGS.module_dict)}'
        )
    mixing = MIXINGS.module_dict[key]()
    mixing.name = key
    return mixing
