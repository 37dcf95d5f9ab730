"""`make demo`'s script, whole, on a handful of images."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KEYS = {
    'float_map',
    'uniform_map',
    'searched_map',
    'budget_bops',
    'uniform_bops',
    'searched_bops',
    'expected_bops',
    'searched_weight_bytes',
    'float_weight_bytes',
    'float_checkpoint_bytes',
    'float_state_bytes',
    'packed_file_bytes',
    'feasible',
    'seconds',
}


def test_the_demo_runs_from_data_to_report(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / 'tools/demo.py'),
            *('--work-dir', str(tmp_path / 'demo'), '--data', str(tmp_path / 'shapes')),
            *('--train-images', '10', '--val-images', '8'),
            *('--cfg-options', 'train_cfg.max_epochs=1', 'train_cfg.val_interval=1'),
            *('default_hooks.checkpoint.interval=1', 'train_dataloader.batch_size=2'),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / 'demo/summary.json').read_text())
    assert set(summary) == KEYS
    assert summary['feasible'] is True
    assert summary['searched_bops'] <= summary['budget_bops'] == summary['uniform_bops']
    assert summary['searched_weight_bytes'] < summary['float_weight_bytes'] / 4
    packed = tmp_path / 'demo/exported/searched.safetensors'
    assert packed.stat().st_size == summary['packed_file_bytes']
    rest = summary['float_state_bytes'] - summary['float_weight_bytes']
    bits_alone = summary['searched_weight_bytes'] + rest
    # An index beside them; Huffman's code saves about a tenth of the codes.
    assert 0.85 * bits_alone < packed.stat().st_size < 1.05 * bits_alone
    assert str(packed.name) in done.stdout
    page = (tmp_path / 'demo/report/index.html').read_text()
    assert 'uniform W3A3' in page and 'searched' in page and 'packed file' in page
    assert (tmp_path / 'demo/report/bits.png').stat().st_size > 10_000
