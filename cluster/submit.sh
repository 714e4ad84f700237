#!/usr/bin/env bash
# `ray job submit` of this checkout, which also tells the job the commit; the upload leaves .git out:
# cluster/submit.sh -- python tune.py --model sasrec
# Its own words, before the --; all others go to `ray job submit` (--address, --no-wait,
# --entrypoint-num-cpus, ...; `ray job submit --help` has them):
#   --token-file FILE   the cluster's token, where it is not in ~/.ray/auth_token
#   --exclude PATTERN   leave more out of the upload, as .gitignore would; may be given many times
#   --env NAME=VALUE    a variable of the job, no secret: Ray's logs show it; many times
#   --resume            go on with the study
set -euo pipefail
cd "$(dirname "$0")/.."

own=() submit=() resume=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  case $1 in
    --token-file) export RAY_AUTH_TOKEN_PATH=${2:?which file?} && shift ;;
    --exclude | --env) own+=("$1" "${2:?$1 needs a word after it}") && shift ;;
    --resume) resume=(--resume) ;;
    *) submit+=("$1") ;;
  esac
  shift
done
[ $# -gt 1 ] || { echo "what shall run? cluster/submit.sh -- python tune.py --model sasrec" >&2; exit 2; }
shift

export RAY_AUTH_MODE=token
commit=$(git describe --always --abbrev=40 --dirty=+ --exclude='*' 2>/dev/null || true)
environment=$(python3 - "$commit" ${own[@]+"${own[@]}"} <<'PYTHON'
import json, re, sys

variables = {"SEQTUNE_GIT_COMMIT": sys.argv[1], "SEQTUNE_JOB": "1"}
excludes = []
for kind, word in zip(sys.argv[2::2], sys.argv[3::2]):
    name, equals, value = word.partition("=")
    if kind == "--exclude":
        excludes.append(word)
    elif not equals or not name.isidentifier():
        sys.exit(f"--env {word}: write NAME=VALUE")
    elif re.search("PASS|SECRET|TOKEN|KEY|CREDENTIAL", name.upper()):
        sys.exit(
            f"--env {name}: it looks like a secret, and Ray's logs would show it; give it to the "
            "machines instead, in the environment in which their Ray is started"
        )
    else:
        variables[name] = value
print(json.dumps({"env_vars": variables} | ({"excludes": excludes} if excludes else {})))
PYTHON
)
exec ray job submit --working-dir . --runtime-env-json "$environment" ${submit[@]+"${submit[@]}"} \
  -- "$@" ${resume[@]+"${resume[@]}"}
