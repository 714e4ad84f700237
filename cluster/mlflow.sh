#!/usr/bin/env bash
# Starts an MLflow server that keeps all in one folder, and stays until Ctrl-C:
# cluster/mlflow.sh FOLDER. Further words go to `mlflow server`.
set -euo pipefail

: "${1:?in which folder? cluster/mlflow.sh FOLDER}"
mkdir -p "$1"
folder=$(cd "$1" && pwd)
shift
export MLFLOW_DISABLE_TELEMETRY=true
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false # eight more processes, for what is not used here
exec mlflow server --workers 1 \
  --backend-store-uri "sqlite:///$folder/mlflow.db" \
  --artifacts-destination "$folder/artifacts" \
  "$@"
