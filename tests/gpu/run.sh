#!/usr/bin/env bash
# Builds kvmesh and runs everything that needs GPUs: the tests on up to 4, `kvmesh verify` on the
# GPUs, then the benchmarks on 1, 2, 4, … and all that are visible (docs/benchmarks.md has longer
# ones). Ends with a short table and fails if a step failed.
#
#   tests/gpu/run.sh [--no-bench] [--sanitize] [CMAKE_ARGUMENT ...]
#
# --sanitize runs the tests under compute-sanitizer, too: memcheck, then racecheck.
#
# BUILD_DIR (default build/gpu), CASES (verify's cases a run, default 20), KVMESH_MODEL (a GGUF file
# for `kvmesh generate`; left out without it).
set -u -o pipefail
cd "$(dirname "$0")/../.." || exit 2

build=${BUILD_DIR:-build/gpu}
cases=${CASES:-20}
bench=yes sanitize=no
[[ ${1:-} == --no-bench ]] && { bench=no; shift; }
[[ ${1:-} == --sanitize ]] && { sanitize=yes; shift; }

# NVLink multicast can take a host's GPUs out of service where they are shared.
export NCCL_NVLS_ENABLE=${NCCL_NVLS_ENABLE:-0}
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l)
[[ $gpus -gt 0 ]] || { echo "tests/gpu/run.sh: no GPU here (nvidia-smi lists none)" >&2; exit 2; }
nvidia-smi --query-gpu=index,name,driver_version --format=csv,noheader
more=() # numbers of ranks beside 1, 2 and 4
for ((ranks = 8; ranks < gpus; ranks *= 2)); do more+=("$ranks"); done
[[ $gpus -eq 3 || $gpus -gt 4 ]] && more+=("$gpus")

table=()
failed=0
step() { # step NAME COMMAND ...
  local name=$1 start=$SECONDS status
  shift
  printf '\n== %s: %s\n' "$name" "$*"
  "$@"
  status=$?
  [[ $status -eq 0 ]] || failed=1
  table+=("$(printf '%-28s %-6s %4d s' "$name" "$([[ $status -eq 0 ]] && echo ok || echo FAILED)" \
    $((SECONDS - start)))")
  return $status
}
job() { mpirun --oversubscribe --bind-to none -np "$@"; }

step configure cmake -S . -B "$build" -G Ninja -D CMAKE_BUILD_TYPE=Release "$@" >/dev/null &&
  step build cmake --build "$build" --target kvmesh gpu_tests || exit 1

step 'tests (label gpu)' ctest --test-dir "$build" -L gpu -j "$(nproc)" --output-on-failure
if [[ $sanitize == yes ]]; then
  launcher='compute-sanitizer;--error-exitcode;1;--report-api-errors;no;--tool' # NCCL asks and is refused
  for tool in memcheck racecheck; do # but what dies on purpose, and what takes turns on a GPU
    cmake -S . -B "$build" -D "KVMESH_GPU_LAUNCHER=$launcher;$tool" >/dev/null
    KVMESH_STEPS=6 step "tests under $tool" ctest --test-dir "$build" -L gpu -E 'nccl_failure|shared_memory|bench|_hosts' \
      -j "$(nproc)" --output-on-failure
  done
  cmake -S . -B "$build" -D KVMESH_GPU_LAUNCHER= >/dev/null
fi
kvmesh=$build/launch/kvmesh
for ranks in 1 2 4 "${more[@]}"; do # several ranks may share a GPU
  step "verify, $ranks ranks" job "$ranks" "$kvmesh" verify --device cuda --count "$cases"
  step "verify, reproducible, $ranks" job "$ranks" "$kvmesh" verify --device cuda --reproducible --count "$cases"
done
if [[ -n ${KVMESH_MODEL:-} ]]; then
  step 'generate, 2 ranks' job 2 "$kvmesh" generate --device cuda --model "$KVMESH_MODEL" \
    --prompt 'Why is the sky blue?' --max-tokens 32 --ranks-check
fi
if [[ $bench == yes ]]; then
  step 'bench, ragged' "$kvmesh" bench --device cuda --batch 16 --context 8192 --lengths even,ragged \
    --op decode,prefill,step,plan
  for ranks in 1 2 4 "${more[@]}"; do # one rank a GPU
    [[ $ranks -le $gpus ]] || continue
    step "bench, $ranks GPUs" job "$ranks" "$kvmesh" bench --device cuda --batch 1,64 \
      --context 8192,131072 --json "$build/bench_$ranks.json"
  done
  step 'bench: tables' python3 bench/tables.py "$build"/bench_*.json
fi

printf '\n'
printf '%s\n' "${table[@]}"
exit $failed
