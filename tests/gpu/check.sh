#!/usr/bin/env bash
# Looks at seqtune on this machine's GPU, and prints tables for docs/performance.md.
#
#   tests/gpu/check.sh [--cpu] [--wheels FOLDER] [PART...]
#
# It needs Python 3.12 or later with torch 2.11 or later, numpy, pandas, pyarrow, PyYAML, rich,
# scipy, safetensors and pytest, but no network and no Ray. What else is missing (pydantic, say) is
# taken from the wheels in FOLDER. --cpu does on a CPU all that a CPU can. Without a PART it does
# all of them, in some six minutes: agreement, training, speed,
# compiled, models, together.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
words=()
while [ $# -gt 0 ]; do
  if [ "$1" = --wheels ]; then
    site=$(mktemp -d "${TMPDIR:-/tmp}/seqtune-wheels.XXXXXX")
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$2"/*.whl
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
    shift 2
  else
    words+=("$1")
    shift
  fi
done
export PYTHONPATH="$here/../../platform${PYTHONPATH:+:$PYTHONPATH}"
"$python" "$here/check.py" ${words[@]+"${words[@]}"}
