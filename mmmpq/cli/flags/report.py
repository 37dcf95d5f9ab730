"""Makes the report of a search again from the files in its work_dir."""

import argparse
from pathlib import Path

EPILOG = """\
reads   WORK_DIR/policy.json, WORK_DIR/search_history.jsonl (a search writes both)
writes  WORK_DIR/report/index.html and its figures as PNG

The rows file is a JSON list of the nets to compare, the float one first; only "name"
is required:
  [{"name": "float", "metric": 0.58, "bops": 4.1e11, "weight_bytes": 4.5e7},
   {"name": "uniform W3A3", "metric": 0.54, "bops": 3.6e9, "weight_bytes": 4.3e6},
   {"name": "searched", "metric": 0.56, "bops": 3.5e9, "weight_bytes": 4.4e6,
    "expected_bops": 3.4e9}]
Without it the table shows the costs that the policy names, and no accuracy.
"""


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'work_dir', type=Path, help='work_dir of a finished or running search'
    )
    parser.add_argument(
        '--rows', type=Path, help='JSON file with the rows of the table'
    )
    parser.add_argument(
        '--sizes', type=Path, help='sizes.json of mmmpq export, for one more table'
    )
    parser.add_argument(
        '--out-dir', type=Path, help='where to write (default: WORK_DIR/report)'
    )
    return parser.parse_args()
