"""Attention of torch, taken apart: outputs, gradients, checkpoints, files."""

import copy

import pytest
import torch
from mmcv.cnn.bricks.transformer import MultiheadAttention
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

from mmmpq.costs import profile
from mmmpq.export.integer_check import checking
from mmmpq.export.onnx.graph import export_onnx
from mmmpq.export.onnx.model import OnnxNetwork
from mmmpq.export.packed import load_packed, save_packed
from mmmpq.layers import calibrating, open_attention, quantized_layers
from mmmpq.layers.attention import Attention
from mmmpq.models import apply_policy, quantize
from mmmpq.models.loading import load_float
from mmmpq.search import Problem, SearchSpace

N, L, S, E, HEADS = 3, 5, 7, 8, 2
KINDS = dict(
    plain={},
    dims=dict(kdim=6, vdim=10),
    unbiased=dict(bias=False),
    first=dict(batch_first=True),
    dropout=dict(dropout=0.4),
)
MASKS = 'none', 'bool', 'float', 'each', 'padding', 'both', 'floats'


def attention(**kwargs):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(E, HEADS, **kwargs)
    for param in module.parameters():
        nn.init.normal_(param, std=0.4)
    return module


def opened(module):
    net = nn.Sequential(copy.deepcopy(module))
    open_attention(net)
    assert type(net[0]) is Attention
    return net[0]


def tokens(module, images=(N,)):
    sizes = (L, E), (S, module.kdim), (S, module.vdim)
    found = [torch.randn(*images, *size) for size in sizes]
    swapped = images and not module.batch_first
    return [x.transpose(0, 1).contiguous() for x in found] if swapped else found


def masks(kind, images=N):
    attended = torch.rand(L, S) < 0.3
    each = torch.rand(images * HEADS, L, S) < 0.3
    padding = torch.zeros(images, S, dtype=torch.bool)
    attended[:, 0] = each[..., 0] = False
    padding[0, -2:] = True
    return dict(
        none={},
        bool=dict(attn_mask=attended),
        float=dict(attn_mask=torch.randn(L, S)),
        each=dict(attn_mask=each),
        padding=dict(key_padding_mask=padding),
        both=dict(attn_mask=attended, key_padding_mask=padding),
        floats=dict(
            attn_mask=torch.randn(L, S), key_padding_mask=torch.randn(images, S)
        ),
    )[kind]


def results(module, inputs, call):
    """Outputs, and gradients of inputs and weights, by the names of torch."""
    torch.manual_seed(1)
    inputs = [x.clone().requires_grad_() for x in inputs]
    out, weights = module(*inputs, **call)
    total = out.square().sum()
    (total if weights is None else total + weights.square().sum()).backward()
    found = {n: p.grad for n, p in module.named_parameters()}
    for kind in ('weight', 'bias'):
        if f'in_proj_{kind}' in found:
            parts = found.pop(f'in_proj_{kind}').chunk(3)
        elif f'q_proj_{kind}' in found:
            parts = [found.pop(f'{n}_proj_{kind}') for n in 'qkv']
        else:
            continue
        found |= {f'{n}_proj.{kind}': g for n, g in zip('qkv', parts, strict=True)}
    return out, weights, [x.grad for x in inputs], found


def check_same(module, inputs, **call):
    wanted = results(module, inputs, call)
    found = results(opened(module), inputs, call)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('weights', [False, True])
@pytest.mark.parametrize('mask', MASKS)
@pytest.mark.parametrize('kind', KINDS)
def test_it_is_what_torch_computes(kind, mask, weights):
    module = attention(**KINDS[kind])
    check_same(module, tokens(module), **masks(mask), need_weights=weights)


@pytest.mark.parametrize('mask', ['none', 'each', 'both'])
def test_a_single_sequence_and_the_weights_of_each_head(mask):
    call = masks(mask, images=1)
    if mask == 'both':
        call['key_padding_mask'] = call['key_padding_mask'][0]
    module = attention()
    check_same(module, tokens(module, ()), **call, average_attn_weights=False)


def test_causal_attention():
    module = attention()
    x = torch.randn(L, N, E)
    mask = nn.Transformer.generate_square_subsequent_mask(L)
    check_same(module, [x, x, x], attn_mask=mask, is_causal=True, need_weights=False)
    with pytest.raises(ValueError, match='is_causal: found True without attn_mask'):
        opened(module)(x, x, x, is_causal=True)


@pytest.mark.parametrize('kind', ['plain', 'dims', 'unbiased'])
@pytest.mark.parametrize('by', ['torch', 'mmengine'])
def test_float_checkpoints_load(kind, by):
    module = attention(**KINDS[kind])
    net = nn.ModuleDict(dict(inner=nn.Sequential(attention(**KINDS[kind]))))
    open_attention(net)
    state = {f'inner.0.{n}': 2 * x for n, x in module.state_dict().items()}
    given = dict(state)
    if by == 'torch':
        net.load_state_dict(state)
    else:
        load_state_dict(net, state, strict=True)
    assert state == given
    with torch.no_grad():
        for param in module.parameters():
            param.mul_(2)
    inputs = tokens(module)
    torch.testing.assert_close(net['inner'][0](*inputs), module(*inputs))


def test_a_supernet_starts_from_a_float_checkpoint():
    net, state = nn.Sequential(attention()), nn.Sequential(attention()).state_dict()
    model = quantize(net, candidates=['W2A2', 'W4A4'])
    load_float(model, {n: 2 * x for n, x in state.items()}, 'net.pth')
    assert torch.equal(model[0].k_proj.weight, 2 * state['0.in_proj_weight'][E : 2 * E])
    with pytest.raises(ValueError, match=r'no weights for 3 of 4 layers, such as 0\.q'):
        load_float(model, {'0.out_proj.weight': state['0.out_proj.weight']}, 'net.pth')


def test_what_is_not_taken_apart():
    shared = attention()
    shared.tied = nn.ParameterList([shared.in_proj_weight])
    for module in (
        attention(add_bias_kv=True),
        attention(add_zero_attn=True),
        type('Own', (nn.MultiheadAttention,), {})(E, HEADS),
        shared,
    ):
        open_attention(module)
        assert isinstance(module, nn.MultiheadAttention)


def test_flags_and_random_numbers_stay():
    module = attention().eval()
    module.in_proj_weight.requires_grad_(False)
    before = torch.get_rng_state()
    module = opened(module)
    assert torch.equal(torch.get_rng_state(), before)
    assert list(dict(module.named_children())) == [
        *('q_proj', 'k_proj', 'v_proj', 'out_proj'),
    ]
    assert not any(m.training for m in module.modules())
    assert not module.q_proj.weight.requires_grad and module.q_proj.bias.requires_grad


def test_layers_of_torch_take_no_fast_path_around_it():
    layer = nn.TransformerEncoderLayer(E, HEADS, 16, batch_first=True).eval()
    net = nn.TransformerEncoder(layer, 1, enable_nested_tensor=True).eval()
    x = torch.randn(2, L, E)
    with torch.no_grad():
        wanted = net(x)
        model = quantize(copy.deepcopy(net), policy='W32A32', fixed={'*': None})
        assert len(quantized_layers(model)) == 6
        torch.testing.assert_close(model(x), wanted)
        model = quantize(net, policy='W2A2')
        with calibrating(model):
            model(x)
        assert (model(x) - wanted).abs().max() > 0.1


# --- a net like DETR ------------------------------------------------------------------


class Queries(nn.Module):
    """Self-attention of an image's patches, and queries that look at them."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, E, 4, 4)
        self.place = nn.Parameter(torch.randn(1, 16, E))
        self.queries = nn.Parameter(torch.randn(1, 4, E))
        self.encoder = MultiheadAttention(E, HEADS, batch_first=True)
        self.decoder = MultiheadAttention(E, HEADS, batch_first=True)
        self.ffn = nn.Linear(E, E)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = self.encoder(x, query_pos=self.place, key_pos=self.place)
        queries = self.queries.expand(len(x), -1, -1)
        return (self.ffn(self.decoder(queries, x, x, key_pos=self.place)).mean(1),)


def config(**quant):
    MODELS.register_module(module=Queries, force=True)
    init_default_scope('mmpretrain')
    head = dict(type='LinearClsHead', num_classes=3, in_channels=E, topk=(1,))
    return Config(
        dict(
            default_scope='mmpretrain',
            model=dict(
                type='mmmpq.QuantModel',
                base_type='ImageClassifier',
                quant=quant,
                backbone=dict(type='Queries'),
                head=head,
            ),
        )
    )


SHAPE = 3, 16, 16
LAYERS = [f'backbone.{n}.attn.{p}_proj' for n in ('encoder', 'decoder')
          for p in ('q', 'k', 'v', 'out')]  # fmt: skip


def test_its_projections_are_searched_and_priced():
    cfg = config(candidates=['W2A2', 'W4A4', 'W8A8'], groups='layer')
    model = MODELS.build(cfg.model)
    space = SearchSpace(model)
    assert set(LAYERS) <= {g.name for g in space.groups}
    with torch.no_grad(), calibrating(model):
        model(torch.randn(4, *SHAPE))
    for logits in space.logits:
        logits.requires_grad_()
    model(torch.randn(4, *SHAPE))[0].square().sum().backward()
    assert all(logits.grad.abs().sum() > 0 for logits in space.logits)
    macs = {p.name: (p.macs, p.weights, p.calls) for p in profile(model, SHAPE)}
    patches, queries = (16 * E * E, E * E, 1), (4 * E * E, E * E, 1)
    assert [macs[n] for n in LAYERS] == [
        *[patches] * 4, queries, patches, patches, queries
    ]  # fmt: skip
    assert not any('attn' in n for n in macs.keys() - set(LAYERS))
    problem = Problem(model, [dict(type='BOPs', limit='W4A4', input_shape=SHAPE)])
    policy = problem.policy(problem.most_probable())
    assert set(LAYERS) <= set(policy.layers)


@pytest.mark.parametrize('policy', ['W8A8', 'W3A4'])
def test_its_file_its_graph_and_its_integers(policy, tmp_path):
    torch.manual_seed(0)
    cfg = config(policy=policy)
    model = MODELS.build(cfg.model)
    x = torch.randn(4, *SHAPE)
    with torch.no_grad(), calibrating(model):
        model(x)
    model.eval()
    with torch.no_grad(), checking(model) as checks:
        wanted = model(x)
    assert set(LAYERS) <= set(checks)
    assert all(check.share < 1e-5 for check in checks.values())
    path = save_packed(model, tmp_path / 'net.safetensors', cfg)
    with torch.no_grad():
        assert torch.equal(load_packed(path)(x)[0], wanted[0])
    export_onnx(model, tmp_path / 'net.onnx', SHAPE)
    found = OnnxNetwork(tmp_path / 'net.onnx')(x)['outputs']
    with torch.no_grad():
        wanted = model.head(model.extract_feat(x))
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.02)


def test_the_policy_of_a_search_is_fine_tuned_and_its_float_list_is_kept():
    cfg = config(candidates=['W2A2', 'W4A4'], exclude=['backbone.decoder.attn.k_proj'])
    model = MODELS.build(cfg.model)
    space = SearchSpace(model)
    policy = space.policy([0] * len(space.groups))
    policy.meta['quant'] = model.quantized_with
    again = MODELS.build(config(policy=policy.to_dict()).model)
    apply_policy(model, policy)
    again.load_state_dict(model.state_dict())
    assert isinstance(again.backbone.decoder.attn.k_proj, nn.Linear)
    assert 'backbone.decoder.attn.k_proj' not in quantized_layers(again)
