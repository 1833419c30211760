#!/bin/sh
# The commands of the image, one for each process. They run by exec, so that the process is number 1 and gets SIGTERM.
set -eu
cd "$(dirname "$0")/.."

usage() {
    cat >&2 <<'END'
Commands:
  api                          serve the HTTP API
  worker [QUEUES] [OPTIONS]    run jobs; QUEUES is jobs, deletions or jobs,deletions (the default); OPTIONS are Celery's
  beat                         send due jobs; two may run, one sends
  flower                       show jobs
  broker ...                   the operator's command; broker -h shows more
  healthcheck                  exit 0 if the process of this container is healthy
END
    exit 2
}

# The health check is a separate process. This file tells it the address of the process that its container runs.
health_url_file=${TMPDIR:-/tmp}/broker-health-url
answers_at() {
    echo "http://127.0.0.1:$1" >"$health_url_file"
}

[ $# -gt 0 ] || usage
command=$1
shift
case $command in
api)
    answers_at "${API_PORT:-8080}/healthz"
    exec gunicorn -c deploy/gunicorn.conf.py broker_api.wsgi:app "$@"
    ;;
worker)
    queues=jobs,deletions
    case ${1:-} in
    '' | -*) ;;
    *)
        queues=$1
        shift
        ;;
    esac
    answers_at "${METRICS_PORT:-9101}/healthz"
    # If -c is given twice, Celery uses the last one.
    exec celery -A broker_worker.celery_app worker -Q "$queues" -c 4 -E "$@"
    ;;
beat)
    answers_at "${METRICS_PORT:-9102}/healthz"
    exec celery -A broker_worker.celery_app beat "$@"
    ;;
flower)
    answers_at "${FLOWER_PORT:-5555}/healthcheck"
    exec celery -A broker_worker.celery_app flower "$@"
    ;;
broker)
    exec broker "$@"
    ;;
healthcheck)
    # Not through a proxy: one may be set in the environment.
    exec python -c '
import sys
from urllib.request import ProxyHandler, build_opener

try:
    build_opener(ProxyHandler({})).open(sys.argv[1], timeout=3).close()
except OSError as error:
    sys.exit(f"{sys.argv[1]}: {error}")
' "$(cat "$health_url_file")"
    ;;
*)
    usage
    ;;
esac
