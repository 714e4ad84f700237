#!/usr/bin/env bash
# Starts the head of a Ray cluster that lets nobody in without its token, and stays until Ctrl-C.
# Further words go to `ray start`: cluster/head.sh --port 6380
set -euo pipefail

export RAY_AUTH_MODE=token
export RAY_USAGE_STATS_ENABLED=0
export RAY_JOB_STOP_WAIT_TIME_S=60 # what a stopped study may take to save itself; Ray gives it 3

# Makes the token where there is none yet; whoever can read it can run anything on the cluster.
(umask 077 && ray get-auth-token --generate >/dev/null)
exec ray start --head --block "$@"
