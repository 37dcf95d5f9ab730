#!/usr/bin/env bash
# Prepares the Python environment behind `make demo` and `make test` and prints the
# path of its interpreter as the last line of standard output.
#
#   MMMPQ_FAMILY=onedl   the maintained forks of the toolboxes (default: openmmlab)
#   MMMPQ_MMCV=compiled  build mmcv with operators of its own (default: lite, no compiler)
#   MMMPQ_ENV=active     use the environment that is active now, installing what it lacks
#   MMMPQ_CACHE=DIR      where environments and wheels are kept (default: ~/.cache/mmmpq)
#   MMMPQ_PYTHON=PATH    the interpreter to start from (default: python3.11, 3.12, 3.13)
#
# Third-party packages alone are installed. The project is put on the path by whoever
# runs it (PYTHONPATH), so that two clones never share an install.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${MMMPQ_CACHE:-${XDG_CACHE_HOME:-${HOME:-$(cd ~ && pwd)}/.cache}/mmmpq}
case $cache in /*) ;; *) cache=$PWD/$cache ;; esac
finder=$root/mmmpq/mmcv_ext/mmmpq-mmcv-ext.pth
kind=${MMMPQ_MMCV:-lite}
say() { printf '[mmmpq] %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

usable() {  # an interpreter that starts, is of the right age and can make environments
  [ "$("$1" -c 'import ensurepip, sys, venv
print((3, 11) <= sys.version_info[:2] <= (3, int(sys.argv[1])))' "$newest" \
    2>/dev/null)" = True ]
}

find_python() {
  local accepted="Python 3.11 to 3.$newest with venv (Debian: python3-venv)" name found
  if [ -n "${MMMPQ_PYTHON:-}" ]; then
    usable "$MMMPQ_PYTHON" && echo "$MMMPQ_PYTHON" && return
    found=$("$MMMPQ_PYTHON" -V 2>/dev/null) || found='no interpreter'
    die "MMMPQ_PYTHON=$MMMPQ_PYTHON: found $found, accepted is $accepted;" \
      'leave it out to have one looked for'
  fi
  for name in python3.11 python3.12 python3.13 python3; do
    if usable "$name"; then command -v "$name" && return; fi
  done
  die "found no $accepted; install one or type MMMPQ_PYTHON=/path/to/python make test"
}

# What is pinned for this family, one NAME==VERSION a line.
pins() {
  sed -n 's/^\([a-z-]*==[^ ]*\).*/\1/p' "$root"/requirements/{common,"$family"}.txt |
    if [ "$kind" = lite ]; then cat; else sed 's/^mmcv-lite==/mmcv==/'; fi
}
pin() { pins | sed -n "s/^$1==//p"; }

# The pins of which nothing is installed, whatever version or distribution of it is; with
# `exact`, also those of which another version is. Prints nothing if all are there.
lacking() {
  pins | "$python" -c '
import sys
from importlib import metadata, util
modules = {"opencv-python": "cv2", "opencv-python-headless": "cv2",
           "scikit-learn": "sklearn", "pytest-xdist": "xdist", "mmcv-lite": "mmcv",
           "onedl-mmdetection": "mmdet", "mmsegmentation": "mmseg",
           "onedl-mmsegmentation": "mmseg"}
def found(name):
    module = modules.get(name, name.removeprefix("onedl-"))
    if (name, sys.argv[1]) == ("setuptools", "openmmlab"):
        module = "pkg_resources"  # what mmengine wants of it, gone in setuptools 82
    spec = util.find_spec(module)
    return spec is not None and spec.origin is not None  # a folder alone is none
def other(name, version):
    try:
        return metadata.version(name) != version
    except metadata.PackageNotFoundError:
        return True
for pin in sys.stdin.read().split():
    name, version = pin.split("==")
    if not found(name) or (sys.argv[2:] and other(name, version)):
        # beside a torch that stays, its own torchvision is the one that works
        print(name if name == "torchvision" and found("torch") else pin)
' "$family" "$@"
}

# NAME==VERSION of what the active environment has and must keep: an installation never
# replaces a toolbox, a fork of one, torch or NumPy. An argument selects one family.
kept() {
  "$python" -c '
import sys
from importlib import metadata
names = {"openmmlab": "mmengine mmcv mmcv-lite mmcv-full mmdet mmpretrain "
                      "mmsegmentation",
         "onedl": "onedl-mmengine onedl-mmcv onedl-mmdetection onedl-mmpretrain "
                  "onedl-mmsegmentation",
         "common": "torch torchvision numpy"}
for name in " ".join(names[key] for key in sys.argv[1:] or names).split():
    try:
        print(name + "==" + metadata.version(name))
    except metadata.PackageNotFoundError:
        pass
' "$@"
}

# mmcv.ops is imported on purpose: an mmcv without operators, or built against another
# torch, imports as `mmcv` and fails only there.
check() {
  PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} "$python" - >/dev/null <<'PY'
import sys, warnings
warnings.filterwarnings('ignore')
try:
    import torch, torchvision, torchvision.ops
except (ImportError, RuntimeError) as error:
    sys.exit(f'torch and torchvision do not match ({error}): install both from the same '
             'index, with one `pip install --force-reinstall torch torchvision`')
try:
    import mmcv.ops
except ImportError as error:
    sys.exit(f'mmcv.ops cannot be imported ({error}): mmcv was built without its '
             'operators or against another torch; `pip uninstall mmcv` and type the '
             'command again')
try:
    import mmdet.apis, mmpretrain.apis, mmseg.apis
except (ImportError, AssertionError) as error:
    sys.exit(f'mmdet, mmpretrain or mmseg cannot be imported ({error})')
try:  # what `_base_ = 'mmdet::...'` calls
    __import__('mmengine.utils').utils.get_installed_path('mmdet')
except ImportError as error:
    sys.exit(f'mmengine needs pkg_resources ({error}), which setuptools 82 dropped: '
             'pip install "setuptools<82"')
PY
}

reachable() {  # asks pip's index for a small file
  local status=0
  "$python" -m pip download -q --no-deps --no-cache-dir --retries 0 --timeout 20 \
    -d "$cache/probe" "rich==$(pin rich)" >/dev/null 2>&1 || status=1
  rm -rf "$cache/probe"
  return $status
}

# Ends with the reason why packages could not be installed.
failed() {
  local free
  free=$(df -Pm "$cache" | awk 'NR == 2 {print $4}')
  [ "$free" -gt 1000 ] ||
    die "the disk is full: $free MB are free in $cache, an environment takes 6000;" \
      'type MMMPQ_CACHE=/folder/on/another/disk make test'
  reachable ||
    die 'no package index can be reached: connect to the network or type' \
      'PIP_INDEX_URL=https://your.mirror/simple make test'
  die "$*"
}

# uv takes seconds for what takes pip minutes. pip is there where uv is not, and knows of
# mirrors that uv was not told of.
install() {
  if [ -n "$uv" ]; then
    "$uv" pip install --python "$python" --compile-bytecode "$@" >&2 && return
    reachable || failed
    say 'uv could not install them (the reason is above): pip tries'
  fi
  "$python" -m pip install --disable-pip-version-check "$@" >&2 ||
    failed 'pip could not install the packages (the reason is above)'
}

find_uv() {  # on the PATH, or in the new environment; empty if there is none
  local index
  uv=$(command -v uv) || {
    "$python" -m pip install --retries 1 uv >/dev/null 2>&1 || reachable || failed
    uv=$env/bin/uv
    [ -x "$uv" ] || uv=
  }
  index=$("$python" -m pip config get global.index-url 2>/dev/null) || index=
  index=${PIP_INDEX_URL:-$index}
  if [ -n "$index" ]; then export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$index}; fi
}

check_compiler() {
  command -v "${CXX:-c++}" >/dev/null || command -v g++ >/dev/null ||
    die 'MMMPQ_MMCV=compiled needs a C++ compiler and there is none: install g++' \
      '(Debian: build-essential), or leave MMMPQ_MMCV out, which needs none'
  "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(
      os.path.join(sysconfig.get_paths()["include"], "Python.h")))' ||
    die "MMMPQ_MMCV=compiled needs Python.h of $("$python" -V): install its headers" \
      '(Debian: python3-dev), or leave MMMPQ_MMCV out, which needs none'
}

# One wheel per (Python, torch, CUDA, mmcv): pip's own cache does not know torch.
build_mmcv() {
  local name=mmcv version key wheels log
  [ "$family" = openmmlab ] || name=onedl-mmcv
  version=$(pin "$name")
  key=$("$python" -c 'import sys, torch; print("py%d%d-torch%s-%s" % (
      *sys.version_info[:2], torch.__version__.split("+")[0],
      "cu" + torch.version.cuda if torch.cuda.is_available() and
      __import__("torch.utils.cpp_extension").utils.cpp_extension.CUDA_HOME
      else "cpu"))')
  wheels=$cache/wheels/$key
  mkdir -p "$wheels"
  if ! ls "$wheels/${name/-/_}-$version"-*.whl >/dev/null 2>&1; then
    log=$wheels/build.log
    check_compiler
    install $(sed -n 's/^\([a-z-]*==[^ ]*\).*/\1/p' "$root/requirements/build.txt")
    say "building $name $version with its ops for $key, once: minutes on 2 cores"
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
    # Without debug information, which Python's own flags ask for: half the time. Some
    # releases of setuptools take these in place of those flags, some in addition.
    export CFLAGS="-O3 -DNDEBUG -g0 ${CFLAGS:-}" CXXFLAGS="-O3 -DNDEBUG -g0 ${CXXFLAGS:-}"
    MMCV_WITH_OPS=1 MAX_JOBS=${MAX_JOBS:-$(nproc 2>/dev/null || echo 2)} \
      "$python" -m pip wheel -v --no-cache-dir --no-build-isolation --no-deps \
      --no-binary "$name" -w "$wheels/tmp" "$name==$version" 2>&1 | tee "$log" |
      { grep --line-buffered -oE '\[[0-9]+/[0-9]+\]' || true; } |
      while read -r step; do printf '\r[mmmpq] mmcv %s ' "$step" >&2; done || {
        tail -n 30 "$log" >&2
        die "mmcv did not build; the whole log is $log"
      }
    printf '\n' >&2
    mv "$wheels"/tmp/*.whl "$wheels/"
    rmdir "$wheels/tmp"
  fi
  "$python" -m pip install -q --no-deps "$wheels/${name/-/_}-$version"-*.whl >&2
}

has_operators() {  # without importing mmcv
  "$python" -c 'import importlib.util, pathlib, sys
folders = importlib.util.find_spec("mmcv").submodule_search_locations
sys.exit(not any([*pathlib.Path(folder).glob("_ext*")] for folder in folders))'
}

fill() {  # PACKAGE...: installs them, then what mmcv needs for its operators
  local packages=("$@") constraints=() build=
  if [ "$kind" = compiled ] && [[ " $*" = *mmcv==* ]]; then
    check_compiler  # before minutes of downloads
    build=1
    mapfile -t packages < <(printf '%s\n' "$@" | grep -vE '^(onedl-)?mmcv==')
  fi
  kept >"$cache/kept.txt"
  if [ -s "$cache/kept.txt" ]; then constraints=(-c "$cache/kept.txt"); fi
  if [ ${#packages[@]} -gt 0 ]; then install "${packages[@]}" "${constraints[@]}"; fi
  if [ -n "$build" ]; then build_mmcv; fi
}

# What mmcv lacks is then found in mmmpq/mmcv_ext by every program of the environment,
# also by those that import mmdet before us.
finish() {
  local reason packages
  has_operators || {
    packages=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
    cmp -s "$finder" "$packages/${finder##*/}" || cp "$finder" "$packages" 2>/dev/null ||
      die "$packages cannot be written: $finder belongs there, so that mmcv has its" \
        'operators; copy it as a user who may'
  }
  reason=$(check 2>&1) || die "$python: $(tail -n 1 <<<"$reason")"
}

lock() {  # another clone may be setting up the same environment
  mkdir -p "$cache" 2>/dev/null && [ -w "$cache" ] ||
    die "MMMPQ_CACHE: the folder $cache cannot be made or written; type" \
      'MMMPQ_CACHE=/another/folder make test'
  exec 9>"$cache/lock"
  flock 9 2>/dev/null || true
}

use_active() {
  local other theirs missing
  python=$(command -v python || command -v python3) ||
    die 'MMMPQ_ENV=active: there is no python on the PATH; activate an environment'
  if [ -z "${MMMPQ_FAMILY:-}" ] && [ -n "$(kept onedl)" ]; then family=onedl; fi
  mapfile -t missing < <(lacking)
  case $family in onedl) other=openmmlab ;; *) other=onedl ;; esac
  theirs=$(kept $other | paste -sd ' ')
  if [ -n "$theirs" ] && [ -n "${MMMPQ_FAMILY:-}${missing[*]}" ]; then
    die "MMMPQ_ENV=active: $python has $theirs, over which $family's packages would be" \
      "laid; activate another environment or type MMMPQ_FAMILY=$other make test"
  fi
  if [ ${#missing[@]} -gt 0 ]; then
    lock
    say 'installing what the active environment lacks:' "${missing[@]}"
    "$python" -m pip --version >/dev/null 2>&1 || uv=$(command -v uv) ||
      die "MMMPQ_ENV=active: $python has no pip; type $python -m ensurepip"
    fill "${missing[@]}"
  fi
  [ "$kind" = lite ] || has_operators ||
    die 'MMMPQ_MMCV=compiled: the active environment has an mmcv without operators;' \
      "to have it built, type $python -m pip uninstall mmcv-lite onedl-mmcv"
  finish
}

ready() {  # a stamp alone does not tell that nothing was removed since
  local lacks packages="$env/lib/python*/site-packages"
  [ -f "$env/.ready" ] && lacks=$(lacking exact 2>&1) && [ -z "$lacks" ] &&
    { compgen -G "$packages/${finder##*/}" || compgen -G "$packages/mmcv/_ext*.so"; } \
      >/dev/null
}

compiles() {  # whether our CPU kernels find a compiler
  local name
  for name in "${CXX:-c++}" c++ g++ clang++; do
    command -v "$name" >/dev/null && return
  done
  compgen -G "$env/lib/python*/site-packages/ziglang" >/dev/null
}

# A search on a CPU takes two to three times as long without our kernels.
add_compiler() {
  compiles && return
  say 'no C++ compiler is found: one comes as a package, for the fast CPU kernels'
  "$python" -m pip install -q --disable-pip-version-check \
    -r "$root/requirements/kernels.txt" >&2 ||
    say 'warning: it could not be installed; a search on a CPU will be slow'
}

use_own() {
  local base key
  unset PYTHONPATH PYTHONHOME  # nothing there belongs to this environment
  base=$(find_python)
  key=$({ echo "$family $kind"; cat "$root"/requirements/{common,build,"$family"}.txt \
    "$finder"; "$base" -V; } | sha256sum | cut -c1-12)
  env=$cache/$family-$kind-$key
  python=$env/bin/python
  if ready && compiles; then return; fi
  lock
  if ready; then
    add_compiler
    return
  fi
  if [ -d "$env" ]; then say "the environment in $env is not whole: making it anew"; fi
  say "making the environment in $env: up to 6 GB, half of it downloads, minutes"
  rm -rf "$env"
  "$base" -m venv "$env"
  find_uv
  mapfile -t packages < <(pins)
  fill "${packages[@]}"
  add_compiler
  finish
  touch "$env/.ready"
  say 'the environment is ready'
}

uv=
family=${MMMPQ_FAMILY:-openmmlab}
case $family in
  openmmlab) newest=12 ;;
  onedl) newest=13 ;;
  *) die "MMMPQ_FAMILY=$family: accepted are openmmlab and onedl; type" \
    'MMMPQ_FAMILY=onedl make test' ;;
esac
case $kind in
  lite | compiled) ;;
  *) die "MMMPQ_MMCV=$kind: accepted are lite and compiled; type" \
    'MMMPQ_MMCV=lite make test' ;;
esac
case ${MMMPQ_ENV:-} in
  active) use_active ;;
  '') use_own ;;
  *) die "MMMPQ_ENV=$MMMPQ_ENV: accepted is active; type MMMPQ_ENV=active make test, or" \
    'leave it out to have an environment made' ;;
esac
echo "$python"
