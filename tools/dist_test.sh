#!/usr/bin/env bash
# tools/dist_test.sh CONFIG CHECKPOINT NPROC [flags of test.py]
# NPROC processes on this machine, one per GPU, or on the CPU where there is none.
#   PYTHON  the interpreter (default: python)
#   PORT    the port at which the processes meet (default: 29500)
#   NNODES, NODE_RANK, MASTER_ADDR  for several machines
set -euo pipefail
[ $# -ge 3 ] || {
  echo "usage: $0 CONFIG CHECKPOINT NPROC [flags of test.py]" >&2
  exit 2
}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} \
  exec "${PYTHON:-python}" -m torch.distributed.run \
  --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
  --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
  --nproc_per_node="$3" \
  "$root/tools/test.py" "$1" "$2" --launcher pytorch "${@:4}"
