"""``nn.MultiheadAttention`` with layers for projections, which can be quantized."""

import math
from collections import Counter
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

PROJECTIONS = 'q_proj', 'k_proj', 'v_proj'


class Attention(nn.Module):
    """What ``nn.MultiheadAttention`` computes, by ``nn.Linear``s.

    ``in_proj_weight``, or ``q_proj_weight`` and the like, are those of ``q_proj``,
    ``k_proj`` and ``v_proj``: query, key and value are quantized each by itself, as
    they differ in cross-attention, and by an added position in self-attention, too.
    Checkpoints of the float module load as they are. What it is called with, and what
    it returns, are as of torch.

    It is made of a module of torch, in place, by :func:`open_attention`.
    """

    embed_dim: int
    num_heads: int
    dropout: float
    batch_first: bool

    def _open(self) -> None:
        parameters = self._parameters
        separate = [parameters[f'{name}_weight'] for name in PROJECTIONS]
        joint, bias = parameters['in_proj_weight'], parameters['in_proj_bias']
        weights = separate if joint is None else joint.chunk(3)
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        last = self._modules.pop('out_proj')
        for name, weight, bias in zip(PROJECTIONS, weights, biases, strict=True):
            out, into = weight.shape
            layer = nn.Linear(into, out, bias=bias is not None, device='meta')
            layer.weight = _parameter(weight)
            if bias is not None:
                layer.bias = _parameter(bias)
            self.add_module(name, layer.train(self.training))
        last.__class__ = nn.Linear  # whose forward torch's own subclass has
        self.add_module('out_proj', last)
        for name in parameters:  # torch's own Transformer layers look at some
            parameters[name] = None
        self._qkv_same_embed_dim = False  # and then call this forward

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if is_causal and attn_mask is None:
            raise ValueError('is_causal: found True without attn_mask, as of torch')
        single, inputs = query.dim() == 2, (query, key, value)
        if single:
            inputs = (x[None] for x in inputs)
        elif not self.batch_first:
            inputs = (x.transpose(0, 1) for x in inputs)
        layers = self.q_proj, self.k_proj, self.v_proj
        q, k, v = (
            self._heads(layer(x)) for layer, x in zip(layers, inputs, strict=True)
        )
        mask = self._mask(attn_mask, key_padding_mask, q)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * math.sqrt(1 / q.shape[-1])) @ k.transpose(-2, -1)
            scores = scores if mask is None else scores + mask
            weights = F.dropout(scores.softmax(-1), dropout)
            x = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            x = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        x = self.out_proj(x.transpose(1, 2).flatten(2))
        if single:
            return x[0], None if weights is None else weights[0]
        return x if self.batch_first else x.transpose(0, 1), weights

    def _heads(self, x: Tensor) -> Tensor:
        """(N, L, E) to (N, heads, L, E / heads)."""
        images, tokens, channels = x.shape
        heads = self.num_heads
        return x.reshape(images, tokens, heads, channels // heads).transpose(1, 2)

    def _mask(
        self, attended: Tensor | None, padding: Tensor | None, q: Tensor
    ) -> Tensor | None:
        """Of the scores (N, heads, L, S), to be added; None: nothing is masked."""
        if attended is not None and attended.dim() == 3:  # (N · heads, L, S)
            attended = attended.unflatten(0, (-1, self.num_heads))
        if padding is not None:  # (N, S)
            padding = padding.reshape(-1, 1, 1, padding.shape[-1])
        masks = [
            m
            if m.is_floating_point()
            else q.new_zeros(m.shape).masked_fill(m, -math.inf)
            for m in (attended, padding)
            if m is not None
        ]
        return sum(masks[1:], masks[0]) if masks else None

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        for kind in ('weight', 'bias'):
            joint = state_dict.pop(f'{prefix}in_proj_{kind}', None)
            if joint is not None:
                parts = zip(PROJECTIONS, joint.chunk(3), strict=True)
                state_dict |= {f'{prefix}{name}.{kind}': x for name, x in parts}
        for name in PROJECTIONS:
            if f'{prefix}{name}_weight' in state_dict:
                weight = state_dict.pop(f'{prefix}{name}_weight')
                state_dict[f'{prefix}{name}.weight'] = weight
        super()._load_from_state_dict(state_dict, prefix, *args)


def open_attention(model: nn.Module) -> None:
    """Makes each ``nn.MultiheadAttention`` of ``model`` an :class:`Attention` in place.

    Those with tokens of their own (``add_bias_kv``, ``add_zero_attn``) or with weights
    that are something else's as well stay what they are.
    """
    modules = list(model.modules())
    held = Counter(id(p) for m in modules for p in m._parameters.values())
    for module in modules:
        if type(module) is not nn.MultiheadAttention:
            continue
        own = [p for p in module._parameters.values() if p is not None]
        more = module.bias_k is not None or module.add_zero_attn
        if not more and all(held[id(p)] == 1 for p in own):
            module.__class__ = Attention
            module._open()


def _parameter(of: Tensor) -> nn.Parameter:
    return nn.Parameter(of.detach().clone(), of.requires_grad)
