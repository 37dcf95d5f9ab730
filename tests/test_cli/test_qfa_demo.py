"""`make qfa-demo`'s script, whole, on a handful of images."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_qfa_demo_runs_from_data_to_front(tmp_path):
    few = [f'{split}_dataloader.dataset.indices=20' for split in ('train', 'val')]
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / 'tools/qfa_demo.py'),
            *('--work-dir', str(tmp_path / 'demo'), '--data', str(tmp_path / 'digits')),
            *('--samples', '12', '--search-options', 'batches=1', 'processes=1'),
            *('population=10', 'generations=3', 're-evaluate=4'),
            *('--cfg-options', 'train_cfg.max_epochs=1', 'train_cfg.val_interval=1'),
            *('default_hooks.checkpoint.interval=1', *few),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / 'demo/summary.json').read_text())
    assert set(summary) == {'metric', 'tau', 'budgets', 'seconds'}
    for name, found in summary['budgets'].items():
        assert sum(found['costs'].values()) <= float(name.split()[0]) * 1e6
    assert (tmp_path / 'demo/search/front.png').stat().st_size > 5_000
