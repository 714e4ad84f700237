#!/usr/bin/env bash
# Goes on with a study, or begins it where there is none: for what starts a command again by itself
# (Slurm's --requeue, a RayJob with a backoffLimit).
# cluster/again.sh python tune.py --model sasrec --data /shared/ratings.csv --name shop
set -uo pipefail

"$@" --resume
code=$?
[ "$code" -eq 2 ] || exit "$code" # 2: refused before anything began, as --resume is at first
exec "$@"
