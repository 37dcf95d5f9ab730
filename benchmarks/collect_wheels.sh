#!/usr/bin/env bash
# benchmarks/collect_wheels.sh [DIR]
# Downloads what benchmarks/gpu.sh needs on a machine without network, into DIR (default:
# .whl in the clone): OpenMMLab's toolboxes and what they import, for Python 3.12 on Linux
# x86-64. torch, torchvision, Triton and the usual scientific packages are not among it.
# Run it in the environment of `make test`: it has the versions that are tested.
#   PYTHON  an interpreter of that environment (default: python)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=${1:-$root/.whl}
python=${PYTHON:-python}
# Pinned in requirements/, and what these import. `python -m pip show` has the rest.
pinned=(setuptools mmengine mmcv-lite mmdet mmpretrain pycocotools)
imported=(addict six yapf platformdirs termcolor shapely terminaltables importlib_metadata
  lazy-importer zipp mat4py model-index ordered-set einops)
platforms=()
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1; do
  platforms+=(--platform "${tag}_x86_64")
done

wanted=()
for name in "${pinned[@]}"; do
  wanted+=("$(sed -n "s/^\($name==[^ ]*\).*/\1/p" "$root"/requirements/{common,openmmlab}.txt)")
done
for name in "${imported[@]}"; do
  wanted+=("$name==$("$python" -c 'import sys
from importlib.metadata import version
print(version(sys.argv[1]))' "$name")")
done

mkdir -p "$folder"
rm -f "$folder"/*.whl
for one in "${wanted[@]}"; do
  "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
    --implementation cp "${platforms[@]}" -d "$folder" "$one" 2>/dev/null ||
    "$python" -m pip wheel --quiet --no-deps -w "$folder" "$one" # pure Python, no wheel
done
if ls "$folder"/*.whl | grep -v -e '-none-any\.whl$' -e '-cp312-'; then
  echo 'error: these are for another Python' >&2
  exit 1
fi
echo "$(ls "$folder"/*.whl | wc -l) wheels, $(du -sh "$folder" | cut -f 1), in $folder"
