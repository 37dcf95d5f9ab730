"""Where a quantized net leaves the float one, layer by layer, and what to do."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from mmmpq.cli.flags.diagnose import parse_args
from mmmpq.engine.batches import unwrapped
from mmmpq.engine.launch import load_config
from mmmpq.engine.post_training import quant_of, runner_of, training_images
from mmmpq.fileio import atomic_write, check_place
from mmmpq.models.task_loss import images_of
from mmmpq.post_training.diagnosis import Finding, diagnose
from mmmpq.post_training.pipeline import prepare
from mmmpq.visualization.diagnosis import diagnosis_page
from mmmpq.visualization.noise import noise
from mmmpq.visualization.progress import progress_bar, terminal
from mmmpq.visualization.theme import DARK, LIGHT, draw


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    console = terminal(140)
    out = Path(args.work_dir)
    replaced = check_place(out / 'diagnosis.json', '--out')
    cfg = load_config(args)
    quant = quant_of(cfg, args.policy) if args.policy else None
    runner = runner_of(cfg, args.checkpoint, args.seed)
    batches = training_images(runner, args.images)
    if quant:
        prepare(unwrapped(runner), batches, quant)
    with progress_bar(console, 'parts', 1) as bar:
        findings = diagnose(unwrapped(runner), batches[0], bar)
    entries = [f.to_dict() for f in findings]
    atomic_write(out / 'diagnosis.json', json.dumps(entries, indent=1) + '\n')
    images = {theme.name: draw(noise, theme, findings) for theme in (LIGHT, DARK)}
    atomic_write(out / 'diagnosis.png', images['light'])
    title = f'{Path(args.config).stem}: what quantization harms'
    facts = (
        f'{args.checkpoint} · {len(images_of(batches[0]))} training images · '
        f'{len(findings)} parts, {sum(bool(f.faults) for f in findings)} with faults'
    )
    page = diagnosis_page(title, facts, findings, images)
    atomic_write(out / 'diagnosis.html', page)
    console.print(table(findings[: args.rows]))
    console.print(
        f'wrote {out}/diagnosis.html, diagnosis.json, diagnosis.png{replaced}'
    )


def table(findings: Sequence[Finding]) -> Table:
    """The worst first; ratios in dB."""
    shown = Table('', '', 'harm', 'alone', 'so far', 'what to do')
    for column in shown.columns[2:5]:
        column.justify = 'right'
    for f in findings:
        ratios = [f'{r:.1f}' if r is not None else '' for r in (f.alone, f.cumulated)]
        text = '; '.join(f.faults)
        shown.add_row(f.name, f.precision or f.kind, f'{f.harm:.2g}', *ratios, text)
    return shown
