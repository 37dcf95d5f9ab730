"""Numbers as people read them."""

import pytest

from mmmpq.units import digits, fits, human, scale, statement


@pytest.mark.parametrize(
    ('value', 'unit', 'text'),
    [
        (1.203e9, 'BOPs', '1.20 GBOPs'),
        (3.9526e12, 'BOPs', '3.95 TBOPs'),
        (999, 'BOPs', '999 BOPs'),
        (12e6, 'bytes', '12.0 MB'),
        (1234, 'bytes', '1.23 KB'),
        (0, 'bytes', '0 B'),
        (1500, 'us', '1.50 ms'),
        (0.25, 'us', '0.250 µs'),
        (3.5, 'mJ', '3.50 mJ'),
    ],
)
def test_human(value, unit, text):
    assert human(value, unit) == text


def test_scale_is_decimal():
    assert scale(1e6, 'bytes') == (1e6, 'MB')
    assert digits(1234.5) == '1234'


def test_statement_never_hides_a_difference():
    assert statement(1.18e9, 1.2e9, 'BOPs') == 'fits: 1.18 of 1.20 GBOPs (98.3 %)'
    assert statement(1.2e9, 1.2e9, 'BOPs') == 'fits: 1.20 of 1.20 GBOPs (100.0 %)'
    assert (
        statement(1.2002e9, 1.2e9, 'BOPs')
        == 'exceeds: 1.2002 of 1.2000 GBOPs (100.017 %)'
    )
    assert fits(0.1 + 0.2, 0.3)
    assert not fits(3.0001, 3.0)
