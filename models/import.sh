#!/usr/bin/env bash
# Turns a DnCNN state dict (PyTorch, KAIR's key names) into a model directory
# that the service takes.
#   models/import.sh WEIGHTS.pth [OUT_DIR]
# OUT_DIR is data/models/<file name without .pth> unless given. The first call
# makes build/training/venv, which needs Python 3.11 and about 7 GB.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
if [[ $# -lt 1 || $# -gt 2 || -z $1 ]]; then sed -n 's/^# \{0,1\}//;2,6p' "$0" >&2; exit 2; fi
[[ -f $1 ]] || { echo "import.sh: no file $1" >&2; exit 1; }
name=$(basename "$1")
out=${2:-$(cd "$here/.." && pwd)/data/models/${name%.pth}}
venv=$("$here/training/venv.sh")
PYTHONDONTWRITEBYTECODE=1 "$venv/bin/python" "$here/training/dncnn.py" import "$1" "$out"
