#!/usr/bin/env bash
# tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [flags of train.py]
#   GPUS, GPUS_PER_NODE (default: 8), CPUS_PER_TASK (default: 5)
#   PYTHON     the interpreter (default: python)
#   SRUN_ARGS  more arguments of srun
set -euo pipefail
[ $# -ge 4 ] || {
  echo "usage: $0 PARTITION JOB_NAME CONFIG WORK_DIR [flags of train.py]" >&2
  exit 2
}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck disable=SC2086  # SRUN_ARGS is a list
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} \
  exec srun -p "$1" --job-name="$2" \
  --gres=gpu:"${GPUS_PER_NODE:-8}" --ntasks="${GPUS:-8}" \
  --ntasks-per-node="${GPUS_PER_NODE:-8}" --cpus-per-task="${CPUS_PER_TASK:-5}" \
  --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
  "${PYTHON:-python}" -u "$root/tools/train.py" "$3" --work-dir "$4" \
  --launcher slurm "${@:5}"
