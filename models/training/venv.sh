#!/usr/bin/env bash
# Makes the Python environment that training, export and import share, or
# brings it up to requirements.txt, and prints its folder.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=$root/build/training/venv
mkdir -p "$root/build/training"
[[ -x $venv/bin/python ]] || python3 -m venv "$venv" >&2
if ! cmp -s "$here/requirements.txt" "$venv/requirements.txt"; then
  "$venv/bin/pip" install -q -r "$here/requirements.txt" >&2
  cp "$here/requirements.txt" "$venv/"
fi
echo "$venv"
