"""Precision and Policy: reading, writing, refusing."""

import ast
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import Config

from mmmpq.engine.launch import embed_policy
from mmmpq.policy import BITS, FLOAT, SKIP, Policy, Precision, near, parse_candidates
from mmmpq.units import statement


@pytest.mark.parametrize(
    'value', ['W4A8', 'w4a8', (4, 8), [4, 8], Precision(4, 8), (4.0, 8)]
)
def test_forms_of_a_precision(value):
    found = Precision.parse(value)
    assert found == (4, 8)
    assert isinstance(found, Precision)
    assert all(type(bits) is int for bits in found)
    assert str(found) == 'W4A8'


@given(st.sampled_from(BITS), st.sampled_from(BITS))
def test_name_and_back(w_bits, a_bits):
    precision = Precision(w_bits, a_bits)
    assert Precision.parse(str(precision)) == precision


def test_float():
    assert Precision.parse('W32A32') == FLOAT


@pytest.mark.parametrize('value', ['W0A0', (0, 0), [0, 0], SKIP])
def test_a_skipped_block(value, tmp_path):
    assert Precision.parse(value) == SKIP == (0, 0)
    assert str(SKIP) == 'W0A0'
    path = Policy({'conv': SKIP}).save(tmp_path / 'policy.json')
    assert Policy.load(path).layers == {'conv': SKIP}


@pytest.mark.parametrize(
    'value',
    [(0, 4), (4, 0), 'W0A4', (0, 32), (False, False), (0, '0')]
    + [(4, 9), (16, 16), (16, 8), 'W4A15', 'W4A33', (4, 4.5), (True, 4), (4, '4')],
)
def test_bits_out_of_range(value):
    with pytest.raises(ValueError, match=r'quant\.x: found .*1 to 8, and 32'):
        Precision.parse(value, 'quant.x')


@pytest.mark.parametrize('value', ['W4', '4/4', 'A4W4', (4,), (4, 4, 4), 4, None, {}])
def test_no_precision(value):
    with pytest.raises(ValueError, match=r'quant\.x: found .*"W4A4" or a pair'):
        Precision.parse(value, 'quant.x')


def test_activations_alone_may_have_16_bits():
    assert Precision.parse('W8A16') == (8, 16)


def test_candidates():
    assert parse_candidates(['W2A2', (4, 4)]) == (Precision(2, 2), Precision(4, 4))


@pytest.mark.parametrize(
    ('values', 'message'),
    [
        ([], 'empty'),
        ([(2, 2), 'W4A4', (2, 2), 'W2A2'], r'W2A2 is given more than once'),
        ([(2, 2), (4, 12)], r'quant\.candidates\[1\]: found 12'),
        ('W4A4', 'accepted is a list'),
        (None, 'accepted is a list'),
    ],
)
def test_bad_candidates(values, message):
    with pytest.raises(ValueError, match=message):
        parse_candidates(values, 'quant.candidates')


@pytest.fixture
def policy():
    layers = {'backbone.conv1': Precision(8, 8), 'head "fc"': Precision(2, 4)}
    return Policy(layers, dict(model='RetinaNet', input_shape=[3, 8, 8], seed=0))


def test_saved_and_loaded(policy, tmp_path):
    path = policy.save(tmp_path / 'new' / 'policy.json')
    again = Policy.load(path)
    assert again == policy
    assert list(again.layers) == list(policy.layers)
    data = json.loads(path.read_text())
    assert data['format'] == 'mmmpq-policy'
    assert data['version'] == 1
    assert data['layers']['backbone.conv1'] == [8, 8]
    assert data['meta']['model'] == 'RetinaNet'


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'none\.json.*"W4A4"'):
        Policy.load(tmp_path / 'none.json')


@pytest.mark.parametrize('share', [0, 0.1, 0.5, 0.9, 0.98])
def test_cut_short(policy, tmp_path, share):
    path = policy.save(tmp_path / 'policy.json')
    text = path.read_text()
    path.write_text(text[: int(share * len(text))])
    with pytest.raises(ValueError, match=r'policy\.json is damaged or cut short'):
        Policy.load(path)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'\xff\xfe\x00binary', 'damaged'),
        (b'[]', 'no mmmpq-policy file'),
        (b'{"layers": {"a": [4, 4]}}', 'no mmmpq-policy file'),
        (b'{"format": "mmmpq-policy", "layers": {"a": [4, 4]}}', 'version None'),
        (
            b'{"format": "mmmpq-policy", "version": 2, "layers": {"a": [4, 4]}}',
            'version 2; this mmmpq reads up to 1',
        ),
        (b'{"format": "mmmpq-policy", "version": 1, "layers": {}}', 'holds no layers'),
        (b'{"format": "mmmpq-policy", "version": 1, "layers": 3}', 'holds no layers'),
        (
            b'{"format": "mmmpq-policy", "version": 1, "layers": {"neck.a": [4, 12]}}',
            r'neck\.a: found 12 bits',
        ),
    ],
)
def test_damaged(tmp_path, content, message):
    path = tmp_path / 'policy.json'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Policy.load(path)


def test_another_models_policy_names_the_layers(policy):
    policy.check_layers(policy.layers)
    with pytest.raises(ValueError) as error:
        policy.check_layers(['backbone.conv1', 'neck.conv', *map(str, range(20))])
    text = str(error.value)
    assert 'RetinaNet' in text
    assert 'only in the policy: head "fc".' in text
    assert 'only in the model: neck.conv, 0, 1' in text
    assert 'and 13 more' in text


def test_very_many_foreign_layers():
    layers = {f'x.{i}': FLOAT for i in range(200_000)}
    began = time.perf_counter()
    with pytest.raises(ValueError, match=r'only in the policy: x\.0, .* 199992 more'):
        Policy(layers).check_layers([f'y.{i}' for i in range(2000)])
    assert time.perf_counter() - began < 5


def test_near_names():
    assert near('retina', ['retinanet', 'fcos', 'retina']).startswith(
        'near names: retina, retinanet'
    )
    assert near('xyz', ['a', 'b']) == 'near names: a, b'
    assert near('xyz', []) == 'there are none at all'


def test_a_saved_config_has_the_policy_in_it(tmp_path):
    """What a checkpoint says of its net needs no file beside it."""
    quantizer = dict(type='LSQQuantizer')
    quant = dict(w_quantizer=quantizer, a_quantizer=quantizer, float_layers=[])
    meta = dict(quant=quant)
    policy = Policy({'backbone.conv1': Precision(8, 8), 'fc': Precision(2, 4)}, meta)
    path = policy.save(tmp_path / 'policy.json')
    cfg = Config(dict(model=dict(type='x', quant=dict(policy=str(path)))))
    embed_policy(cfg)
    saved = Config.fromstring(cfg.pretty_text, '.py')
    path.unlink()
    assert Policy.from_dict(saved.model.quant.policy) == policy
    embed_policy(saved)  # nothing is left to do
    assert Policy.from_dict(saved.model.quant.policy) == policy
    with pytest.raises(ValueError, match=r'quant\.policy has format version 9'):
        Policy.from_dict(dict(policy.to_dict(), version=9), 'quant.policy')
    for damaged in (3, dict(w_quantizer=quantizer)):
        data = dict(policy.to_dict(), meta=dict(quant=damaged))
        with pytest.raises(ValueError, match=r'meta\.quant: found .* accepted is'):
            Policy.from_dict(data)


def test_it_prints_as_a_table():
    budget = dict(type='BOPs', cost=1.19e9, limit=1.2e9, unit='BOPs')
    layers = dict(stem=(8, 8), **{'layer1.conv': (2, 4)}, block=(0, 0), head=(32, 32))
    policy = Policy(
        {n: Precision(*p) for n, p in layers.items()}, dict(budgets=[budget])
    )
    assert str(policy).splitlines() == [
        '{',
        "    'stem':        'W8A8',",
        "    'layer1.conv': 'W2A4',",
        "    'block':       'W0A0',",
        "    'head':        'W32A32',",
        f'    # BOPs: {statement(1.19e9, 1.2e9, "BOPs")}',
        '}',
    ]
    assert list(ast.literal_eval(str(policy))) == list(layers)
    assert 'Policy(layers=' in repr(policy)
