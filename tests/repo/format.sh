#!/usr/bin/env bash
# Is every C++ file formatted as .clang-format says? Names those that are not; with --fix, formats them.
# Usage: format.sh ROOT [--fix]
# Versions of clang-format differ in small things, so only version 14 decides (in Debian 12 and Ubuntu
# 24.04: clang-format-14); without it, skip (77).
set -euo pipefail
cd "$1"

tool=
for candidate in clang-format-14 clang-format; do
  if "$candidate" --version 2>/dev/null | grep -q 'version 14\.'; then
    tool=$candidate
    break
  fi
done
if [[ -z $tool ]]; then
  echo "skipped: clang-format 14 is not installed (apt-get install clang-format-14)"
  exit 77
fi

mapfile -t files < <(find include core allocator kernels comm runtime launch python tests bench docs \
  -name '*.[ch]pp' -o -name '*.cu' -o -name '*.cuh')
if [[ ${2:-} == --fix ]]; then
  "$tool" -i "${files[@]}"
else
  # One process for all files: starting one takes longer than reading most of them.
  "$tool" --dry-run -Werror "${files[@]}"
fi
