#!/usr/bin/env bash
# A track's life with curl: `track.sh setup` gets a sandbox, `track.sh cleanup` gives it back. Both may be repeated.
#
#   BROKER_API_URL    https://broker.example.com/v1
#   BROKER_TOKEN  the track's token
#   TRACK_ID      who holds the sandbox: one id for one student's lab
#   NAME_PREFIX   only sandboxes whose name starts so (optional)
#   STATE_FILE    where setup keeps its answer for cleanup (sandbox.json)
#   PATIENCE_SEC  how long to go on trying (120)
#
# Exit codes (sysexits.h): 0 done · 64 wrong use · 69 the broker refused · 75 try again later · 77 the token is wrong
set -euo pipefail

say() { printf 'track.sh: %s\n' "$*" >&2; }

for name in BROKER_API_URL BROKER_TOKEN TRACK_ID; do
    if [[ -z ${!name:-} ]]; then
        say "$name is not set"
        exit 64
    fi
done
state=${STATE_FILE:-sandbox.json}
give_up_at=$((SECONDS + ${PATIENCE_SEC:-120}))
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
umask 077 # the state file names a lease

# The token goes to curl by a file: arguments can be read by everybody on the machine.
printf 'header = "Authorization: Bearer %s"\nheader = "X-Track-ID: %s"\n' "$BROKER_TOKEN" "$TRACK_ID" >"$scratch/curlrc"

field() { sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p" "$2"; }

# Send one request until it is answered for good. An unanswered one is sent again as it is: the broker answers a
# repetition with what the first one got.
call() { # method path [curl's arguments]
    local method=$1 path=$2 pause=1 wait
    shift 2
    while true; do
        status=$(curl --silent --config "$scratch/curlrc" --request "$method" --max-time 10 \
            --dump-header "$scratch/headers" --output "$scratch/body" --write-out '%{http_code}' \
            "$@" "$BROKER_API_URL$path") || status=000
        case $status in
        000 | 409 | 429 | 500 | 502 | 503 | 504) ;;
        *) return ;;
        esac
        if [[ $status == 409 && $(field code "$scratch/body") != NO_SANDBOXES_AVAILABLE ]]; then return; fi
        wait=$(sed -n 's/^[Rr]etry-[Aa]fter: *\([0-9]*\).*/\1/p' "$scratch/headers" 2>/dev/null || true)
        wait=${wait:-$pause}
        if ((SECONDS + wait > give_up_at)); then
            say "gave up: $method $path was last answered with $status $(field code "$scratch/body" 2>/dev/null || true)"
            exit 75
        fi
        sleep "$wait"
        pause=$((pause < 8 ? pause * 2 : 8))
    done
}

refused() {
    say "$status $(field code "$scratch/body"): $(field message "$scratch/body")"
    if [[ $status == 401 ]]; then exit 77; fi
    exit 69
}

case $* in
setup)
    prefix=()
    if [[ -n ${NAME_PREFIX:-} ]]; then prefix=(--header "X-Sandbox-Name-Prefix: $NAME_PREFIX"); fi
    call POST /allocate "${prefix[@]}"
    if [[ $status != 20[01] ]]; then refused; fi
    cp "$scratch/body" "$state"
    cat "$state"
    ;;
cleanup)
    if [[ ! -s $state ]]; then
        say "nothing to give back: there is no $state"
        exit 0
    fi
    call POST "/sandboxes/$(field sandbox_id "$state")/mark-for-deletion" \
        --header 'Content-Type: application/json' --data "{\"lease_id\": \"$(field lease_id "$state")\"}"
    case $status in
    200) ;;
    403 | 404 | 409) say "the broker had taken it back before ($(field code "$scratch/body"))" ;;
    *) refused ;;
    esac
    rm -f "$state"
    ;;
*)
    say "usage: track.sh setup|cleanup"
    exit 64
    ;;
esac
