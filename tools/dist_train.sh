#!/usr/bin/env bash
# tools/dist_train.sh CONFIG NPROC [flags of train.py]
# NPROC processes on this machine, one per GPU, or on the CPU where there is none.
#   PYTHON  the interpreter (default: python)
#   PORT    the port at which the processes meet (default: 29500)
#   NNODES, NODE_RANK, MASTER_ADDR  for several machines
set -euo pipefail
[ $# -ge 2 ] || {
  echo "usage: $0 CONFIG NPROC [flags of train.py]" >&2
  exit 2
}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} \
  exec "${PYTHON:-python}" -m torch.distributed.run \
  --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
  --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
  --nproc_per_node="$2" \
  "$root/tools/train.py" "$1" --launcher pytorch "${@:3}"
