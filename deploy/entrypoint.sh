#!/bin/sh
# The commands of the image, one for each process. They run by exec, so that the process is number 1 and gets SIGTERM.
set -eu
cd "$(dirname "$0")/.."

usage() {
    cat >&2 <<'END'
Commands:
  api                          serve the HTTP API
  console                      serve the web pages for people, which call the API
  worker-jobs [OPTIONS]        run jobs, in two processes; OPTIONS are Celery's
  worker-deletions [OPTIONS]   wipe sandboxes, in CSP_MAX_CONCURRENCY threads of one process
  worker-webhooks [OPTIONS]    send webhooks, in 20 threads of one process
  worker [QUEUES] [OPTIONS]    do all of this, in four processes; QUEUES: jobs,deletions,webhooks
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
run_worker() {
    answers_at "${METRICS_PORT:-9101}/healthz"
    # If an option is given twice, Celery uses the last one.
    exec celery -A broker_worker.celery_app worker -E "$@"
}
case $command in
api)
    answers_at "${API_PORT:-8080}/healthz"
    exec gunicorn -c deploy/gunicorn.conf.py broker_api.wsgi:app "$@"
    ;;
console)
    answers_at "${CONSOLE_PORT:-8081}/healthz"
    exec gunicorn -c deploy/gunicorn-console.conf.py broker_api.console.wsgi:app "$@"
    ;;
worker-jobs)
    run_worker -Q jobs -c 2 "$@"
    ;;
worker-deletions)
    # Each thread needs up to five file descriptors.
    ulimit -Sn "$(ulimit -Hn)"
    # More threads would only wait for a call slot.
    run_worker -Q deletions -P threads -c "${CSP_MAX_CONCURRENCY:-10}" "$@"
    ;;
worker-webhooks)
    # Each thread sends to one endpoint, by up to eight connections.
    ulimit -Sn "$(ulimit -Hn)"
    # There are at most 20 endpoints.
    run_worker -Q webhooks -P threads -c 20 "$@"
    ;;
worker)
    queues=jobs,deletions,webhooks
    case ${1:-} in
    '' | -*) ;;
    *)
        queues=$1
        shift
        ;;
    esac
    run_worker -Q "$queues" -c 4 "$@"
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
