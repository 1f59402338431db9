#!/usr/bin/env bash
# The whole comparison in one call, for a machine with a GPU, nvcc and torch but perhaps no network:
# installs the wheels that there are, compiles FlashInfer's kernels and kvmesh side by side, measures.
#
#   bench/peers/run.sh OUTPUT [run.py's flags ...]        # OUTPUT.md and OUTPUT.json
#
# WHEELS (default .whl): a folder of wheels; nothing is installed without it. KVMESH: the program, where
# it is built already. BUILD_DIR (default build/peers): where it is built if not, and packages go.
set -u -o pipefail
[[ $# -ge 1 ]] || { sed -n '2,8s/^# \?//p' "$0"; exit 2; }
mkdir -p "$(dirname "$1")"
output=$(realpath "$1") # before the way back to the root
shift
cd "$(dirname "$0")/../.." || exit 2

wheels=${WHEELS:-.whl} build=${BUILD_DIR:-build/peers}
packages=$PWD/$build/packages
export PYTHONPATH=$packages${PYTHONPATH:+:$PYTHONPATH}
export FLASHINFER_CUDA_ARCH_LIST=${FLASHINFER_CUDA_ARCH_LIST:-9.0a}

if compgen -G "$wheels/*.whl" >/dev/null; then
  # Without dependencies: torch is there, and FlashInfer names packages that these kernels do not need.
  python3 -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$packages" \
    "$wheels"/*.whl || exit 1
fi

rows=() # for warm.py, which takes no other flag
for ((i = 1; i <= $#; ++i)); do
  [[ ${!i} == --rows ]] || continue
  rows=(--rows)
  for ((++i; i <= $#; ++i)); do
    [[ ${!i} == -* ]] && break
    rows+=("${!i}")
  done
done
warm=
if python3 -c 'import flashinfer' 2>/dev/null; then
  python3 bench/peers/warm.py "${rows[@]}" &
  warm=$!
fi

kvmesh=${KVMESH:-}
if [[ -z $kvmesh ]]; then
  kvmesh=$build/launch/kvmesh
  cmake -S . -B "$build" -G Ninja -D CMAKE_BUILD_TYPE=Release -D KVMESH_CUDA_ARCHITECTURES=90 >/dev/null &&
    cmake --build "$build" --target kvmesh || exit 1
fi
# A module that did not compile is named in the table.
[[ -z $warm ]] || wait "$warm" || echo 'bench/peers/run.sh: some of FlashInfer did not compile' >&2

python3 bench/peers/run.py --kvmesh "$kvmesh" -o "$output" "$@"
