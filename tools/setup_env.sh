#!/usr/bin/env bash
# Prepares the Python environment behind `make demo` and `make test` and prints the
# path of its interpreter as the last line of standard output.
#
#   MMMPQ_ENV=active    use the environment that is active now, installing what it lacks
#   MMMPQ_CACHE=DIR     where environments and wheels are kept (default: ~/.cache/mmmpq)
#   MMMPQ_PYTHON=PATH   the interpreter to start from (default: python3.11, 3.10, 3.12)
#
# Third-party packages alone are installed. The project is put on the path by whoever
# runs it (PYTHONPATH), so that two clones never share an install.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
requirements=$root/requirements.txt
cache=${MMMPQ_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mmmpq}
say() { printf '[mmmpq] %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

usable() {  # an interpreter that starts, is new enough and can make environments
  "$1" -c 'import sys, venv; sys.exit(not (3, 9) < sys.version_info[:2] < (3, 13))' \
    >/dev/null 2>&1
}

find_python() {
  if [ -n "${MMMPQ_PYTHON:-}" ]; then
    usable "$MMMPQ_PYTHON" ||
      die "MMMPQ_PYTHON=$MMMPQ_PYTHON: found no Python 3.10 to 3.12 with venv there"
    echo "$MMMPQ_PYTHON" && return
  fi
  for name in python3.11 python3.10 python3.12 python3; do
    if usable "$name"; then command -v "$name" && return; fi
  done
  die "no Python 3.10 to 3.12 with venv found; install one or set MMMPQ_PYTHON"
}

pin() { grep -E "^$1==" "$requirements" | cut -d= -f3; }

# mmcv.ops is imported on purpose: a wheel built without its ops, or against another
# torch, imports as `mmcv` and fails only there.
check() {
  "$python" - <<'PY'
import importlib.util, sys, warnings
warnings.filterwarnings('ignore')
names = ('scipy sklearn matplotlib rich safetensors onnx onnxruntime pymoo '
         'pytest xdist hypothesis ruff')
missing = [n for n in names.split() if importlib.util.find_spec(n) is None]
if missing:
    sys.exit('not installed: ' + ', '.join(missing))
try:
    import pkg_resources  # mmengine reads it for `_base_ = 'mmdet::...'`
except ImportError:
    sys.exit('setuptools >= 82 has no pkg_resources, which mmengine needs: '
             'install "setuptools<82"')
try:
    import torchvision.ops
except (ImportError, RuntimeError) as error:
    sys.exit(f'torch and torchvision do not match ({error}): install them as a pair '
             'from the same index')
try:
    import mmcv.ops, mmdet.apis, mmpretrain.apis
except ImportError as error:
    sys.exit(f'mmcv.ops cannot be imported ({error}): mmcv was built without its ops '
             'or against another torch')
PY
}

check_compiler() {
  command -v "${CXX:-c++}" >/dev/null || command -v g++ >/dev/null ||
    die 'building mmcv needs a C++ compiler: install g++ (Debian: build-essential)'
  "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(
      os.path.join(sysconfig.get_paths()["include"], "Python.h")))' ||
    die "building mmcv needs Python.h of $("$python" -V): install its headers" \
      '(Debian: python3-dev), or set MMMPQ_PYTHON to a Python that has them'
}

# One wheel per (Python, torch, CUDA, mmcv): pip's own cache does not know torch.
build_mmcv() {
  local version key wheels log
  version=$(pin mmcv)
  key=$("$python" -c 'import sys, torch; print("py%d%d-torch%s-%s" % (
      *sys.version_info[:2], torch.__version__.split("+")[0],
      "cu" + torch.version.cuda if torch.cuda.is_available() and
      __import__("torch.utils.cpp_extension").utils.cpp_extension.CUDA_HOME
      else "cpu"))')
  wheels=$cache/wheels/$key
  mkdir -p "$wheels"
  if ! ls "$wheels"/mmcv-"$version"-*.whl >/dev/null 2>&1; then
    log=$wheels/build.log
    check_compiler
    say "building mmcv $version with its ops for $key, once: about 10 minutes on 2 cores"
    rm -rf "$wheels/tmp" && mkdir "$wheels/tmp"
    case $key in
      *-cpu)
        if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'
        then
          say 'warning: there is a GPU but no CUDA toolkit (nvcc, CUDA_HOME): mmcv gets' \
            'its CPU operators only; classifiers run on the GPU, most detectors do not'
        fi
        export CUDA_VISIBLE_DEVICES= ;;
      *) export FORCE_CUDA=1 ;;
    esac
    MMCV_WITH_OPS=1 MAX_JOBS=${MAX_JOBS:-$(nproc 2>/dev/null || echo 2)} \
      "$python" -m pip wheel -v --no-cache-dir --no-build-isolation --no-deps \
      --no-binary mmcv -w "$wheels/tmp" "mmcv==$version" 2>&1 | tee "$log" |
      { grep --line-buffered -oE '\[[0-9]+/[0-9]+\]' || true; } |
      while read -r step; do printf '\r[mmmpq] mmcv %s ' "$step" >&2; done || {
        tail -n 30 "$log" >&2
        die "mmcv did not build; the whole log is $log"
      }
    printf '\n' >&2
    mv "$wheels"/tmp/mmcv-*.whl "$wheels/"
    rmdir "$wheels/tmp"
  fi
  "$python" -m pip install -q --no-deps --force-reinstall \
    "$wheels"/mmcv-"$version"-*.whl >&2
}

if [ "${MMMPQ_ENV:-}" = active ]; then
  python=$(command -v python || command -v python3) ||
    die 'MMMPQ_ENV=active: there is no python on the PATH'
  stamp=
else
  base=$(find_python)
  key=$({ cat "$requirements"; "$base" -V; } | sha256sum | cut -c1-12)
  env=$cache/env-$key
  python=$env/bin/python
  stamp=$env/.ready
fi

if [ -z "$stamp" ] || [ ! -f "$stamp" ]; then
  mkdir -p "$cache"
  exec 9>"$cache/lock"
  flock 9 2>/dev/null || true  # another clone may be setting up the same environment
fi
if [ -z "$stamp" ]; then
  if ! reason=$(check 2>&1); then
    say "installing what the active environment lacks ($(tail -n1 <<<"$reason"))"
    if ! "$python" -c 'import torch, torchvision.ops' 2>/dev/null; then
      "$python" -m pip install "torch==$(pin torch)" "torchvision==$(pin torchvision)" >&2
    fi
    "$python" -m pip install "setuptools==$(pin setuptools)" wheel ninja >&2
    build_mmcv
    grep -vE '^(torch|torchvision|mmcv)==' "$requirements" |
      "$python" -m pip install -r /dev/stdin >&2
    check || die "the environment of $python does not work"
  fi
elif [ ! -f "$stamp" ]; then
  say "making the environment in $env (about 5 GB, minutes; mmcv comes after it)"
  rm -rf "$env"
  "$base" -m venv "$env"
  grep -vE '^mmcv==' "$requirements" |
    "$python" -m pip install --progress-bar off -r /dev/stdin 2>&1 |
    { grep --line-buffered -E '^(Collecting|Installing|Successfully|ERROR)' || true; } |
    cut -c1-100 >&2
  build_mmcv
  check || die "the environment in $env does not work; delete it and try again"
  touch "$stamp"
  say 'the environment is ready'
fi
echo "$python"
