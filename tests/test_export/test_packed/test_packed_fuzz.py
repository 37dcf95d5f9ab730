"""Packed files that somebody has changed and sealed again: one line, no harm done."""

import copy
import json
import random
import threading
import time
import zlib

import pytest
import safetensors.torch
import torch
from mmengine.runner import load_checkpoint
from torch import nn

from mmmpq.export.packed import load_packed, save_packed
from mmmpq.export.packed.bits import pack
from mmmpq.export.packed.file import INDEX, digest_of, digest_of_all
from mmmpq.export.packed.index import codes_of
from mmmpq.export.packed.safetensors import parse
from mmmpq.export.packed.untrusted import fewer_parameters

TEXTS = ('config', 'policy', 'costs', 'dataset_meta')
JUNK = (None, True, 0, -1, 7, 2.5, 2**40, 10**30, '', 'x', [], {}, [3], {'a': 1}, [[]])


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A file's documents and tensors."""
    return {}


@pytest.fixture
def parts(whole, tmp_path, classifier, settled):
    if not whole:
        config = classifier()
        net = settled(config)
        net.backbone.layer2[1].conv2.weight.data.pow_(3)  # few levels: it is compressed
        file = save_packed(net, tmp_path / 'whole.safetensors', config)
        data = file.read_bytes()
        metadata, _ = parse(data, str(file))
        tensors = safetensors.torch.load(data)
        index = json.loads(zlib.decompress(tensors.pop(INDEX).numpy().tobytes()))
        documents = {name: json.loads(metadata[name]) for name in TEXTS}
        whole.update(metadata=metadata, tensors=tensors)
        whole['documents'] = dict(documents, index=index)
    return copy.deepcopy(whole)


def sealed(parts, path, text=None):
    """Writes the parts with digests that fit them; ``text`` in place of the index."""
    index = parts['documents']['index']
    if isinstance(index, dict) and isinstance(index.get('digests'), dict):
        index['digests'] = {n: digest_of(t) for n, t in parts['tensors'].items()}
    data = zlib.compress(json.dumps(index).encode() if text is None else text)
    compressed = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    metadata = dict(parts['metadata'])
    metadata.update({n: json.dumps(parts['documents'][n]) for n in TEXTS})
    del metadata['digest']
    metadata['digest'] = digest_of_all(metadata, compressed)
    tensors = {INDEX: compressed, **parts['tensors']}
    path.write_bytes(safetensors.torch.save(tensors, metadata))
    return path


def places(value, found):
    """All (container, key) pairs inside a document."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inside in list(pairs):
        found.append((value, key))
        if isinstance(inside, (dict, list)):
            places(inside, found)
    return found


def mutate(parts, draw):
    """One change, anywhere."""
    if draw.random() < 0.1:
        tensors = parts['tensors']
        name = draw.choice(sorted(tensors))
        tensor = tensors.pop(name)
        if draw.random() < 0.7:
            change = draw.choice(
                [torch.Tensor.double, lambda t: t[:-1].clone(), lambda t: t[None], None]
            )
            name, tensor = (name, change(tensor)) if change else (f'{name}.x', tensor)
            tensors[name] = tensor
        return
    name = draw.choice(['index', 'index', 'config', 'policy', 'costs', 'dataset_meta'])
    documents = parts['documents']
    inside = documents[name]
    found = places(inside, []) if isinstance(inside, (dict, list)) else []
    container, key = draw.choice([(documents, name), *found])
    value, kind = container[key], draw.randrange(5)
    if kind == 0 and container is not documents:
        del container[key]
    elif kind == 1 and isinstance(container, dict) and container is not documents:
        container[draw.choice(['x', '', '()', f'{key}.x'])] = container.pop(key)
    elif kind == 2 and isinstance(value, (int, float)):
        container[key] = draw.choice([-value, value + 1, value * 10**9, value / 3])
    elif kind == 3 and isinstance(value, list):
        container[key] = value * 2 or [value]
    else:
        container[key] = copy.deepcopy(draw.choice(JUNK))


@pytest.mark.parametrize('seed', range(5))
def test_any_change(seed, parts, tmp_path):
    """Two hundred a part: either a net, or one line that names the file."""
    draw, refused = random.Random(seed), 0
    for i in range(200):
        changed = copy.deepcopy(parts)
        for _ in range(draw.choice([1, 1, 2])):
            mutate(changed, draw)
        file = sealed(changed, tmp_path / f'{i}.safetensors')
        try:
            assert isinstance(load_packed(file), nn.Module)
        except ValueError as error:
            assert str(file) in str(error)
            assert len(str(error).splitlines()) == 1
            refused += 1
    assert refused > 100


def test_an_index_that_unfolds(parts, tmp_path):
    text = b'{"weights":[' + b'[],' * 20_000_000 + b'[]]}'
    file = sealed(parts, tmp_path / 'x.safetensors', text)
    assert file.stat().st_size < 200_000
    began = time.perf_counter()
    with pytest.raises(ValueError, match=r'x\.safetensors: its index is not what mmm'):
        load_packed(file)
    assert time.perf_counter() - began < 5


def test_a_skipped_weight_of_gigabytes(parts, tmp_path):
    """Its shape is held against the model without a byte of it."""
    documents = parts['documents']
    documents['policy']['layers']['backbone.layer1.0.conv1'] = [0, 0]
    documents['policy']['layers']['backbone.layer1.0.conv2'] = [0, 0]
    for i in (1, 2):
        name = f'backbone.layer1.0.conv{i}'
        documents['index']['weights'][name].update(bits=0, shape=[2**20, 2**20])
        del parts['tensors'][f'{name}.weight']
    file = sealed(parts, tmp_path / 'x.safetensors')
    with pytest.raises(ValueError, match=r'x\.safetensors: its tensors do not fit'):
        load_packed(file)
    load_checkpoint(nn.Linear(2, 2), str(file))


@pytest.mark.parametrize(
    ('key', 'value'),
    [('base_channels', 2**20), ('stem_channels', 2**34), ('depth', 10**9)],
)
def test_a_config_of_gigabytes(key, value, parts, tmp_path):
    parts['documents']['config']['model']['backbone'][key] = value
    file = sealed(parts, tmp_path / 'x.safetensors')
    with pytest.raises(ValueError, match=r'x\.safetensors: its config builds no model'):
        load_packed(file)


@pytest.mark.parametrize(
    'text',
    ['weights.pth', 'https://a.b/c', 'facebook/opt', '/etc', 'os.path', '~', 'C:'],
)
def test_no_text_is_a_file(text, parts, tmp_path):
    parts['documents']['config']['model']['backbone']['style'] = text
    file = sealed(parts, tmp_path / 'x.safetensors')
    with pytest.raises(ValueError, match=r'model\.backbone\.style=.*no other file'):
        load_packed(file)


def test_only_this_thread_is_limited():
    others = []
    with fewer_parameters(10):
        thread = threading.Thread(target=lambda: others.append(nn.Linear(9, 9)))
        thread.start()
        thread.join()
        nn.Linear(3, 2)
        with pytest.raises(ValueError, match=r'Linear\.weight of shape \[1, 3\]'):
            nn.Linear(3, 1)
    assert others and nn.Linear(9, 9)


def test_codes_that_unfold(parts, tmp_path):
    """Compressed codes open to as many as shape and bits say, or to none."""
    name, entry = next(
        (n, e) for n, e in parts['documents']['index']['weights'].items()
        if 'coding' in e
    )  # fmt: skip
    stored = parts['tensors'][f'{name}.weight']
    bomb = torch.frombuffer(
        bytearray(zlib.compress(bytes(2**28), 9)), dtype=torch.uint8
    )
    bomb = bomb[: len(stored)]  # a part of it opens to a thousand times its size
    refused = r'x\.safetensors: its index is not what mmmpq writes'
    for data in (bomb, stored[torch.randperm(len(stored))], stored * 0):
        parts['tensors'][f'{name}.weight'] = data
        with pytest.raises(ValueError, match=f'{refused}: compressed codes'):
            load_packed(sealed(parts, tmp_path / 'x.safetensors'))
    parts['tensors'][f'{name}.weight'] = stored
    for coding in ('lzma', 3, []):
        entry['coding'] = coding
        with pytest.raises(ValueError, match=refused):
            load_packed(sealed(parts, tmp_path / 'x.safetensors'))


def test_version_1(parts, tmp_path):
    """Files without compressed codes, as the first version wrote them."""
    wanted = load_packed(sealed(parts, tmp_path / 'two.safetensors')).state_dict()
    for name, entry in parts['documents']['index']['weights'].items():
        codes = codes_of(parts['tensors'][f'{name}.weight'], entry)
        parts['tensors'][f'{name}.weight'] = pack(codes, entry['bits'])
        entry.pop('coding', None)
    parts['metadata']['version'] = '1'
    found = load_packed(sealed(parts, tmp_path / 'one.safetensors')).state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
