#!/usr/bin/env bash
# `ray job submit` of this checkout, which also tells the job the commit; the upload leaves .git out:
# cluster/submit.sh -- python tune.py --model sasrec
set -euo pipefail
cd "$(dirname "$0")/.."

export RAY_AUTH_MODE=token
commit=$(git describe --always --abbrev=40 --dirty=+ --exclude='*' 2>/dev/null || true)
exec ray job submit --working-dir . \
  --runtime-env-json "{\"env_vars\": {\"SEQTUNE_GIT_COMMIT\": \"$commit\", \"SEQTUNE_JOB\": \"1\"}}" \
  "$@"
