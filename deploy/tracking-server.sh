#!/usr/bin/env bash
# Runs an MLflow tracking server for everyone who trains. Settings are MLflow's own variables:
#
#   MLFLOW_BACKEND_STORE_URI      runs and the model registry; SQLite under ./work/tracking unless
#                                 given, e.g. postgresql://user@host/mlflow for more than one person
#   MLFLOW_ARTIFACTS_DESTINATION  models and figures; ./work/tracking/artifacts, or s3://bucket/path
#   MLFLOW_HOST, MLFLOW_PORT      127.0.0.1 and 5000
#   MLFLOW_WORKERS                1, since SQLite has one writer; 4 suit PostgreSQL
#   MLFLOW_SERVER_ALLOWED_HOSTS   the names that clients call the server by, e.g. mlflow:5000. Needed
#                                 behind any name that isn't localhost or a private address, such as
#                                 a Kubernetes service: MLflow answers other names with 403
#
# Further options are passed on to `mlflow server`.
set -euo pipefail

host="${MLFLOW_HOST:-127.0.0.1}"
store="${MLFLOW_BACKEND_STORE_URI:-}"
artifacts="${MLFLOW_ARTIFACTS_DESTINATION:-}"
folder="$PWD/work/tracking"

if [[ -z $store || -z $artifacts ]]; then
    mkdir -p "$folder"
fi
case $host in
    127.*|localhost|::1) ;;
    *) echo "tracking-server.sh: $host has no login: whoever reaches it can read and change" \
            "everything; put it in a private network or add --app-name basic-auth" >&2 ;;
esac

# The server's background jobs judge language models' traces: nothing here uses their processes.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION="${MLFLOW_SERVER_ENABLE_JOB_EXECUTION:-false}"

exec mlflow server \
    --host "$host" \
    --port "${MLFLOW_PORT:-5000}" \
    --workers "${MLFLOW_WORKERS:-1}" \
    --backend-store-uri "${store:-sqlite:///$folder/mlflow.db}" \
    --artifacts-destination "${artifacts:-$folder/artifacts}" \
    "$@"
