"""What is long says how far it is."""

from mmmpq import pace


def test_a_line_now_and_then_with_what_is_left(monkeypatch):
    clock = iter(range(0, 100, 6))  # seconds
    monkeypatch.setattr(pace.time, 'monotonic', lambda: float(next(clock)))
    said = []
    assert list(pace.paced('abcde', said.append, 'work')) == list('abcde')
    # it begins at 0, looks at 6, 12, ...: the first line is due from 10 s on
    assert said == ['work: 1 of 5, about 48 s left', 'work: 3 of 5, about 16 s left']
