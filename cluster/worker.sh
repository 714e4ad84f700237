#!/usr/bin/env bash
# Adds this machine to a Ray cluster, and stays until Ctrl-C: cluster/worker.sh HEAD:6379
# Further words go to `ray start`.
set -euo pipefail

: "${1:?where is the head? cluster/worker.sh HEAD:6379}"
export RAY_AUTH_MODE=token
export RAY_USAGE_STATS_ENABLED=0
exec ray start --block --address "$@"
