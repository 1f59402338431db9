#!/usr/bin/env bash
# Checks that the shell scripts parse, and that shellcheck, if it is installed, finds nothing.
set -euo pipefail
cd "$1"

mapfile -t scripts < <(grep -rlE '^#!.*\b(ba)?sh\b' .ci bench launch tests --include='*' | sort)
for script in "${scripts[@]}"; do bash -n "$script"; done
if command -v shellcheck >/dev/null; then
  shellcheck --severity=warning --external-sources "${scripts[@]}"
fi
echo "${#scripts[@]} scripts: as they should be"
