"""Layers with all candidates of a search."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmmpq.layers.base import Ahead, QuantizedLayer, refuse_skip
from mmmpq.layers.idle import with_idle
from mmmpq.layers.mixing import mixing_of
from mmmpq.layers.quantized_weight import outputs_first
from mmmpq.layers.relaxation import Relaxation
from mmmpq.layers.shares import select, shares
from mmmpq.policy import SKIP, Precision, parse_candidates
from mmmpq.quantizers import Quantizer
from mmmpq.registry import RELAXATIONS, build


class MixedLayer(QuantizedLayer):
    """All candidates of a search, mixed by the probabilities p of the layer's group.

    As its mixing says (:mod:`mmmpq.layers.mixing`):

    * ``composite``: one conv(Σ_a p(a) Q_a(x), Σ_w p(w) Q_w(W)) with the marginals.
    * ``outputs``: Σ_j p_j conv(Q_a(x), Q_w(W)), exactly; candidates that share an
      activation width are merged first: Σ_a conv(Q_a(x), Σ_{w|a} p_{w,a} Q_w(W)).
      While training, candidates below the ``drop`` of the relaxation are left out.
    * ``sampled``: the one path that the relaxation drew. In an architecture step the
      gradient of its composite passes straight through to p.

    With ``own_weights`` candidate j has a weight W_j and a weight quantizer of its own
    in place of the shared W: ``weight`` is that of the first candidate, ``own[str(j)]``
    of the others. They start as copies of ``weight``: of what it is when the layer
    first computes or is calibrated, or of a checkpoint that holds no others.

    Args:
        *args, **kwargs: As of the float layer, and:
        candidates: Precisions, such as ``[(2, 2), (4, 4)]`` or ``['W2A2', 'W4A4']``.
        relaxation: Config, or the relaxation that the layers of a group share.
        mixing: One of the three above, or another one of the registry.
        own_weights: A weight for each candidate; not with mixing 'composite'.
        quantizer: Config of both quantizers, or
        w_quantizer, a_quantizer: of each.

    Raises:
        ValueError: An unknown mixing, ``own_weights`` with mixing 'composite', or a
            candidate (0, 0), which only a whole block can take.
    """

    # Its precision in a uniform net, if that is not the one of all.
    in_uniform: Precision | None = None

    def __init__(
        self,
        *args: Any,
        candidates: Any,
        relaxation: Any = None,
        mixing: str = 'composite',
        own_weights: bool = False,
        quantizer: dict | None = None,
        w_quantizer: dict | None = None,
        a_quantizer: dict | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._init_quant(
            *(candidates, relaxation, mixing, own_weights),
            quantizer=quantizer,
            w_quantizer=w_quantizer,
            a_quantizer=a_quantizer,
        )

    def _init_quant(
        self,
        candidates: Any,
        relaxation: Any = None,
        mixing: str = 'composite',
        own_weights: bool = False,
        **quantizers: dict | None,
    ) -> None:
        self.mixing = mixing
        if own_weights and not self.mixer.own_weights:
            raise ValueError(
                f'own_weights: found with mixing={mixing!r}, which is one convolution '
                "of one weight; accepted are mixing='outputs' and 'sampled'"
            )
        if not isinstance(relaxation, Relaxation):
            candidates = parse_candidates(candidates)
            for candidate in candidates:
                refuse_skip(candidate, 'candidates')
            cfg = relaxation or dict(type='Softmax')
            relaxation = build(RELAXATIONS, cfg, 'relaxation', candidates=candidates)
        if relaxation.owned:
            # A plain reference: as a submodule of every layer of its group it would
            # be saved, and handed to an optimizer's parameter groups, many times.
            self.__dict__['relaxation'] = relaxation
        else:
            self.relaxation = relaxation.to(self.weight.device)
            relaxation.owned = True
        w_bits = relaxation.w_bits
        if own_weights:
            cfg = quantizers.get('w_quantizer') or quantizers.get('quantizer')
            first, *others = [j for j, c in enumerate(self.candidates) if c != SKIP]
            w_bits = (self.candidates[first].w_bits,)
            self.own = nn.ModuleDict()
            for j in others:
                own = self._w_quantizer((self.candidates[j].w_bits,), cfg)
                self.own[str(j)] = OwnWeight(self.weight, own, self.out_dim)
            self._copied = False
        else:
            self.own = {}
        self._init_quantizers(w_bits, relaxation.a_bits, **quantizers)
        self._register_state_dict_hook(_without_statistics)

    @property
    def candidates(self) -> tuple[Precision, ...]:
        return self.relaxation.candidates

    @property
    def mixing(self) -> str:
        return self.mixer.name

    @mixing.setter
    def mixing(self, name: str) -> None:
        self.mixer = mixing_of(name)

    # Left out of what is compiled, which would be new whenever the logits are.
    forward = torch.compiler.disable(QuantizedLayer.forward)

    def _ahead(self) -> Ahead | None:
        """That of a composite, where its coefficients have been handed out."""
        relaxation = self.relaxation
        mixed = relaxation.handed.get(self.samples)
        if self.own or not self.mixer.marginals or not mixed:
            return None
        stamp = relaxation.stamp(self.samples)
        if stamp != mixed.stamp:
            return None
        bits = relaxation.w_bits
        return Ahead(bits, mixed.marginals[0], (bits, *stamp))

    @property
    def samples(self) -> bool:
        """Whether it takes the one path that was drawn, or its one-hot, for p."""
        return self.mixer.samples and self.relaxation.choice is not None

    @property
    def path(self) -> int | None:
        """The one candidate that it computes now; None: it mixes them."""
        relaxation = self.relaxation
        return relaxation.choice if self.samples and not relaxation.learning else None

    def _quantized(self, x: Tensor) -> Tensor:
        self._copy_weights()
        if self.path is not None:
            return self._one(x, self.path)
        return self.mixer.output(self, x, shares(self.relaxation, self.samples))

    def _one(self, x: Tensor, j: int) -> Tensor:
        weight = self.candidate_weight(j)
        if torch.is_grad_enabled():
            weight = with_idle(weight, self._idle(j))
        x = self.a_quantizer(x, self.candidates[j].a_bits)
        return self.compute(x, weight, self.bias)

    def _idle(self, j: int) -> list[nn.Parameter]:
        """Parameters in which the path of candidate j takes no part."""
        w_bits, a_bits = self.candidates[j]
        idle = list(self.a_quantizer.parameters()) if a_bits == 32 else []
        if w_bits == 32 or str(j) in self.own:
            idle += self.w_quantizer.parameters()
        if str(j) in self.own:
            idle.append(self.weight)
        for key, own in self.own.items():
            idle += own.parameters() if key != str(j) else ()
        return idle

    def candidate_weight(self, j: int) -> Tensor:
        """Q_w(W), or Q_w(W_j), of candidate j."""
        if str(j) in self.own:
            return self.own[str(j)]()
        bits = self.candidates[j].w_bits
        return self._once(lambda: self.w_quantizer(self._latent_weight(), bits), bits)

    def mixed_weight(
        self, bits: tuple[int, ...], probs: Tensor, places: Sequence[int] | None = None
    ) -> Tensor:
        """Σ_j p_j Q_w(W), with W quantized to the widths ``bits``.

        Args:
            bits: One width for each coefficient.
            probs: p; with ``places``, of all candidates.
            places: Of the coefficients among ``probs``; None: they are all.
        """
        kind = bits if places is None else (bits, *places)
        return self._once(
            lambda: self.w_quantizer.mix(
                self._latent_weight(),
                bits,
                probs if places is None else select(probs, places),
            ),
            kind,
            *self.relaxation.stamp(self.mixer.samples),
        )

    def extra_repr(self) -> str:
        names = ' '.join(map(str, self.candidates))
        own = ', own weights' if self.own else ''
        return f'{super().extra_repr()}, mixing={self.mixing}, candidates={names}{own}'

    def calibrate(self, samples: Sequence[Tensor]) -> None:
        self._copy_weights()
        super().calibrate(samples)
        for own in self.own.values():
            if not own.w_quantizer.calibrated:
                own.w_quantizer.calibrate(own.latent)

    @torch.no_grad()
    def _copy_weights(self) -> None:
        """Own weights start as copies, once ``weight`` has been initialised."""
        if self.own and not self._copied:
            for own in self.own.values():
                own.weight.copy_(self.weight)
            self._copied = True

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any
    ) -> None:
        weight = state_dict.get(f'{prefix}weight')
        if self.own and weight is not None:
            for j in self.own:
                state_dict.setdefault(f'{prefix}own.{j}.weight', weight.clone())
            self._copied = True
        super()._load_from_state_dict(state_dict, prefix, *args)

    def fix(self, precision: Precision) -> None:
        """Becomes the layer of one precision, in place, with what it has learned.

        Raises:
            ValueError: ``precision`` is none of the candidates.
        """
        if precision not in self.candidates:
            raise ValueError(
                f'policy: found {Precision(*precision)} for a layer with the '
                f'candidates {", ".join(map(str, self.candidates))}'
            )
        key = str(self.candidates.index(precision))
        self._copy_weights()
        if key in self.own:
            self.weight.data.copy_(self.own[key].weight.data)
            self.w_quantizer = self.own[key].w_quantizer
        self.precision = Precision(*precision)
        for quantizer, bits in (
            (self.w_quantizer, self.precision.w_bits),
            (self.a_quantizer, self.precision.a_bits),
        ):
            quantizer.select(bits or quantizer.bits[0])
        del self.relaxation, self.mixer, self.own
        self.__dict__.pop('_quantized_weights', None)
        self.__class__ = self.fixed_class


class OwnWeight(nn.Module):
    """The weight of one candidate and its quantizer: ``() -> Q_w(W_j)``."""

    def __init__(self, weight: Tensor, w_quantizer: Quantizer, out_dim: int) -> None:
        super().__init__()
        self.out_dim = out_dim
        self.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
        self.w_quantizer = w_quantizer

    @property
    def latent(self) -> Tensor:
        return outputs_first(self.weight, self.out_dim)

    def forward(self) -> Tensor:
        return self.w_quantizer(self.latent, self.w_quantizer.bits[0])


def _without_statistics(
    layer: QuantizedLayer, state: dict, prefix: str, metadata: dict
) -> None:
    """Saves what is one path's as not calibrated."""
    if isinstance(layer, MixedLayer):
        for name in ('w_quantizer', 'a_quantizer'):
            quantizer = getattr(layer, name)
            if quantizer.per_subnet:
                signed = torch.full_like(quantizer.signed, -1)
                state[f'{prefix}{name}.signed'] = signed
