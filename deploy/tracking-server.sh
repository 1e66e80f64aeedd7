#!/usr/bin/env bash
# Runs an MLflow tracking server for several people. Settings are MLflow's environment variables:
#
#   MLFLOW_BACKEND_STORE_URI      runs and the model registry; by default SQLite in ./work/tracking;
#                                 for several people, postgresql+psycopg2://user@host/mlflow
#   MLFLOW_ARTIFACTS_DESTINATION  models and figures; ./work/tracking/artifacts, or s3://bucket/path
#   MLFLOW_HOST, MLFLOW_PORT      127.0.0.1 and 5000
#   MLFLOW_WORKERS                1, because SQLite has one writer; 4 are suitable for PostgreSQL
#   MLFLOW_SERVER_ALLOWED_HOSTS   the names by which clients call the server, e.g. mlflow:5000;
#                                 needed for any name that is not localhost or a private address,
#                                 such as a Kubernetes service: MLflow answers other names with 403
#
# Options of this script are passed to `mlflow server`.
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
    *) echo "tracking-server.sh: $host has no login: anyone who can connect to it can read and" \
            "change everything; use a private network or add --app-name basic-auth" >&2 ;;
esac

# The server's background jobs evaluate traces of language models. This project does not use them.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION="${MLFLOW_SERVER_ENABLE_JOB_EXECUTION:-false}"

exec mlflow server \
    --host "$host" \
    --port "${MLFLOW_PORT:-5000}" \
    --workers "${MLFLOW_WORKERS:-1}" \
    --backend-store-uri "${store:-sqlite:///$folder/mlflow.db}" \
    --artifacts-destination "${artifacts:-$folder/artifacts}" \
    "$@"
