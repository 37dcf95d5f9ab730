#!/usr/bin/env bash
# benchmarks/gpu.sh [--stages NAME ...] [--device cuda|cpu] [--tiny] [--out DIR]
# Checks and measures all that a GPU is to show, in nine minutes at most, and writes
# summary.md and JSON files into DIR (default: $OUT, else benchmarks/results/gpu).
# README.md beside it has the stages. Fails if one of them does.
#
# Nothing is downloaded or installed for good: wheels that benchmarks/collect_wheels.sh
# has collected are unpacked into a folder that is removed at the end. Everything else,
# torch and Triton first of all, is the interpreter's own.
#   WHEELS  their folder (default: .whl in the clone; without one nothing is unpacked)
#   PYTHON  the interpreter (default: python3)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
wheels=${WHEELS:-$root/.whl}
python=${PYTHON:-python3}
path=$root

if compgen -G "$wheels/*.whl" >/dev/null; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  "$python" -m pip install --quiet --disable-pip-version-check --root-user-action ignore \
    --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$wheels"/*.whl
  # MMPretrain 1.2 imports transformers where it finds it, and fails on version 5.
  echo "raise ImportError('hidden by benchmarks/gpu.sh')" >"$site/transformers.py"
  mkdir "$site/transformers-0.dist-info"
  printf 'Metadata-Version: 2.1\nName: transformers\nVersion: 0\n' \
    >"$site/transformers-0.dist-info/METADATA"
  path=$root:$site
fi
export PYTHONPATH=$path${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
"$python" -W ignore "$root/benchmarks/gpu.py" "$@"
