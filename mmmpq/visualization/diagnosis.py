"""What harms a quantized net, and what to do, as one HTML page."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from mmmpq.units import digits
from mmmpq.visualization.html import document, figure, html_table

WORST = 5  # faults that stand at the top
SMALLEST = 1e-4  # harm that is written out
PLOT = (
    'Harm, the worst on the left: distance of the net’s outputs from the float net’s '
    'with this part alone as it is in the quantized net. Below, signal-to-noise of its '
    'outputs: on the float net’s inputs, and in the quantized net, where the errors of '
    'all layers before it arrive as well. 20 dB is an error of a tenth.'
)
TABLE = (
    'Share: of the sum of all harms. Alone: on the float net’s inputs, of which '
    'weights: with float inputs, and inputs: with float weights. So far: in the '
    'quantized net. All four in dB; the higher, the better.'
)


def diagnosis_page(
    title: str, facts: str, findings: Sequence[Any], images: Mapping[str, bytes]
) -> str:
    """The verdict, the picture, and every part of the net.

    Args:
        title, facts: Of what; plain text.
        findings: Of :func:`mmmpq.post_training.diagnosis.diagnose`.
        images: Theme name -> PNG of :func:`mmmpq.visualization.noise.noise`.
    """
    total = sum(f.harm for f in findings)
    shares = [f.harm / total if total else 0.0 for f in findings]
    heads = ('', '', 'harm', 'share', 'alone', 'weights', 'inputs', 'so far')
    rows = [
        (
            escape(f.name),
            escape(f.precision or f.kind),
            _harm(f.harm),
            f'{share:.1%}',
            *(
                '–' if ratio is None else f'{ratio:.1f}'
                for ratio in (f.alone, f.weights, f.inputs, f.cumulated)
            ),
            f'<p>{escape("; ".join(f.faults))}</p>',
        )
        for f, share in zip(findings, shares, strict=True)
    ]
    table = html_table((*heads, '<p>what to do</p>'), rows, TABLE)
    return document(
        escape(title),
        escape(facts),
        _verdict(findings, shares),
        figure('noise', 'Harm and noise of every part', PLOT, images),
        f'<section id="parts"><h2>Every part, the worst first</h2>{table}</section>',
    )


def _verdict(findings: Sequence[Any], shares: Sequence[float]) -> str:
    """What is worst, and what to do first."""
    worst = findings[0]
    lines = [
        f'<p>The worst is <strong>{escape(worst.name)}</strong> '
        f'({escape(worst.precision or worst.kind)}): harm {_harm(worst.harm)}, '
        f'{shares[0]:.0%} of the sum of all.</p>'
    ]
    faulty = [f for f in findings if f.faults]
    lines += [
        f'<p class="budget bad">✗ {escape(f.name)}'
        f'<small>{escape("; ".join(f.faults))}</small></p>'
        for f in faulty[:WORST]
    ]
    if len(faulty) > WORST:
        lines.append(f'<p>{len(faulty) - WORST} more in the table.</p>')
    if not faulty:
        lines.append(
            '<p class="budget good">✓ no fault is known of any part'
            '<small>what is left is a matter of bits: more of them for the worst, '
            'learned rounding (mmmpq ptq), or fine-tuning</small></p>'
        )
    return f'<section id="verdict"><h2>What is wrong</h2>{"".join(lines)}</section>'


def _harm(harm: float) -> str:
    return digits(harm, 2) if harm >= SMALLEST or not harm else f'&lt; {SMALLEST:g}'
