"""Measured subnets in a file."""

import json

import pytest

from mmmpq.policy import Precision
from mmmpq.subnets.measured import Samples

SETTINGS = dict(weights='abc', batches=30, genes=dict(conv=['W2A2', 'W4A4']))
ONE = dict(conv=Precision(2, 2), depth=3)
TWO = dict(conv=Precision(4, 4), depth=2)


def test_what_was_measured_is_there_again(tmp_path):
    path = tmp_path / 'new' / 'samples.jsonl'
    samples = Samples(path, SETTINGS)
    assert not path.exists() and ONE not in samples
    samples[ONE], samples[TWO] = dict(top1=70.5), dict(top1=80.0)
    head, *lines = map(json.loads, path.read_text().splitlines())
    assert head == dict(format='mmmpq-samples', settings=SETTINGS)
    assert lines[0] == dict(subnet=dict(conv=[2, 2], depth=3), metrics=dict(top1=70.5))
    again = Samples(path, SETTINGS)
    assert again[dict(depth=3, conv=(2, 2))] == dict(top1=70.5)  # in any order
    other = dict(ONE, depth=2)
    assert TWO in again and other not in again
    assert again.missing([other, ONE, other, TWO]) == [other]


def test_a_line_that_was_cut_is_measured_again(tmp_path):
    path = tmp_path / 'samples.jsonl'
    samples = Samples(path, SETTINGS)
    samples[ONE], samples[TWO] = dict(top1=70.5), dict(top1=80.0)
    whole = path.read_text()
    path.write_text(whole[:-9])
    again = Samples(path, SETTINGS)
    assert ONE in again and TWO not in again
    again[TWO] = dict(top1=80.0)
    assert path.read_text() == whole


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('', 'is damaged'),
        ('{}\n', 'is no mmmpq-samples file'),
        ('{"format": "mmmpq-samples", "settings": {}}\n{"subnet\n', 'is damaged'),
        (
            '{"format": "mmmpq-samples", "settings": {"batches": 8}}\n',
            'batches .there 8, here 30.',
        ),
    ],
)
def test_files_of_something_else(tmp_path, text, said):
    path = tmp_path / 'samples.jsonl'
    path.write_text(text)
    with pytest.raises(ValueError, match=f'samples: .*{said}'):
        Samples(path, SETTINGS)
