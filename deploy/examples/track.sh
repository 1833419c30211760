#!/usr/bin/env bash
# A track's life with curl: `track.sh setup` gets a sandbox, `track.sh extend SECONDS` keeps all sandboxes of the track
# for so long from now, `track.sh cleanup` gives them back. Each may be repeated.
#
#   BROKER_API_URL  https://broker.example.com/v1
#   BROKER_TOKEN    the track's token
#   TRACK_ID        the holder of the sandbox: one id for one student's lab
#   NAME_PREFIX     only sandboxes whose name starts with this (optional)
#   LAB_NAME        the lab's name: a class that is booked for it draws from its reservation (optional)
#   RESERVATION_ID  the reservation to draw from (optional)
#   STATE_FILE      setup writes its answer there for the lab (sandbox.json); cleanup does not read it, but removes it
#   PATIENCE_SEC    how long to wait in line and to try again (120); 0: setup does not wait for a free sandbox
#
# Exit codes (sysexits.h): 0 done · 64 wrong use · 69 the broker refused, or the answer is not a broker's ·
# 73 STATE_FILE cannot be written · 75 try again later · 77 the token is wrong
set -euo pipefail
export LC_ALL=C # here only ASCII is printable

say() { printf 'track.sh: %s\n' "$*" >&2; }

for name in BROKER_API_URL BROKER_TOKEN TRACK_ID NAME_PREFIX LAB_NAME RESERVATION_ID; do
    value=${!name:-}
    if [[ -z $value && $name =~ ^(BROKER_|TRACK_ID) || $value == *[![:print:]]* ]]; then
        say "$name is not set, or is not printable ASCII"
        exit 64
    fi
done
if [[ $BROKER_API_URL != http?(s)://?* ]]; then
    say "BROKER_API_URL is not the URL of an API, such as https://broker.example.com/v1"
    exit 64
fi
if [[ ${PATIENCE_SEC:=120} == *[!0-9]* ]]; then
    say "PATIENCE_SEC is not a number of seconds"
    exit 64
fi
give_up_at=$((SECONDS + 10#$PATIENCE_SEC))
state=${STATE_FILE:-sandbox.json}
scratch=$(mktemp -d)
child= has_place= # has_place: the broker may keep a place in the line for this track
trap at_exit EXIT
# bash runs a trap once the command in the foreground has ended. So what takes long runs in the background.
trap 'exit 130' INT
trap 'exit 143' TERM

at_exit() {
    if [[ -n $child ]]; then kill "$child" 2>/dev/null || true; fi
    if [[ -n $has_place ]]; then # so that no other track waits for this one
        curl --silent --config "$scratch/curlrc" --request DELETE --max-time 5 --output /dev/null \
            "${BROKER_API_URL%/}/waiting" || true
    fi
    rm -rf "$scratch"
}

in_background() { # command
    "$@" &
    child=$!
    local result=0
    wait "$child" || result=$?
    child=
    return "$result"
}
umask 077 # the state file names a lease

# curl reads the token from a file, because everybody on the machine can read arguments.
header() { # name value
    local value=${2//\\/\\\\}
    printf 'header = "%s: %s"\n' "$1" "${value//\"/\\\"}" >>"$scratch/curlrc"
}
header Authorization "Bearer $BROKER_TOKEN"
header X-Track-ID "$TRACK_ID"
if [[ -n ${NAME_PREFIX:-} ]]; then header X-Sandbox-Name-Prefix "$NAME_PREFIX"; fi
if [[ -n ${LAB_NAME:-} ]]; then header X-Instruqt-Track-ID "$LAB_NAME"; fi
if [[ -n ${RESERVATION_ID:-} ]]; then header X-Reservation-ID "$RESERVATION_ID"; fi

field() { sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p" "$2" 2>/dev/null || true; }

# Send one request until it has a final answer. If there is no answer, send the same request again: the broker gives a
# repetition the answer of the first one.
call() { # method path [curl's arguments]
    local method=$1 path=$2 pause=1 wait held=0 prefer
    shift 2
    while true; do
        : >"$scratch/body" # so that the body of an earlier answer does not stay
        : >"$scratch/headers"
        prefer=()
        if [[ $path == /allocate ]] && ((10#$PATIENCE_SEC > 0)); then
            # Wait in line, and let the broker hold the request for so long.
            held=$((give_up_at - SECONDS)) has_place=maybe
            held=$((held > 30 ? 30 : held > 0 ? held : 0))
            prefer=(--header "Prefer: wait=$held")
        fi
        in_background curl --silent --config "$scratch/curlrc" --request "$method" --max-time $((held + 10)) \
            --dump-header "$scratch/headers" --output "$scratch/body" --write-out '%{http_code}' \
            ${prefer[@]+"${prefer[@]}"} "$@" "${BROKER_API_URL%/}$path" >"$scratch/status" || echo 000 >"$scratch/status"
        status=$(<"$scratch/status") code=$(field code "$scratch/body")
        case $status/$code$(field state "$scratch/body") in
        202/waiting | 000/* | 409/NO_SANDBOXES_AVAILABLE | 429/* | 500/* | 502/* | 503/* | 504/*) ;;
        *)
            has_place=
            return
            ;;
        esac
        # In seconds. A date, which a proxy may send, is ignored.
        wait=$(sed -n 's/^[Rr]etry-[Aa]fter: *\([0-9]*\).*/\1/p' "$scratch/headers")
        wait=${wait:-$pause}
        if ((SECONDS + wait > give_up_at)); then
            say "gave up: $method $path was last answered with $status ${code:-$(field state "$scratch/body")}"
            exit 75
        fi
        in_background sleep "$wait"
        pause=$((pause < 8 ? pause * 2 : 8))
    done
}

refused() {
    if [[ -n $code ]]; then
        say "$status $code: $(field message "$scratch/body")"
    else
        say "$status, and this is not an answer of the broker: is BROKER_API_URL right?"
    fi
    if [[ $status == 401 ]]; then exit 77; fi
    exit 69
}

usage() {
    say "usage: track.sh setup | extend SECONDS | cleanup"
    exit 64
}

case $* in
setup)
    # Empty the file before the call: if no answer comes, the file must not hold the answer of an earlier setup.
    if ! { : >"$state"; } 2>/dev/null; then
        say "$state cannot be written"
        exit 73
    fi
    call POST /allocate
    if [[ $status != 20[01] || -z $(field lease_id "$scratch/body") ]]; then refused; fi
    cp "$scratch/body" "$state"
    cat "$state"
    ;;
"extend "[0-9]*)
    if [[ $# != 2 || $2 == *[!0-9]* || ${#2} -gt 9 ]]; then usage; fi
    call GET /sandboxes
    if [[ $status != 200 || -n $code || $(<"$scratch/body") != *'"sandboxes":['* ]]; then refused; fi
    if [[ $(<"$scratch/body") == *'"sandboxes":[]'* ]]; then
        say "nothing to extend: the track holds no sandbox"
        exit 69
    fi
    expires_at=$(($(date +%s) + 10#$2))
    sed 's/},{/}\
{/g' "$scratch/body" >"$scratch/held" # one sandbox a line
    while read -r held; do
        printf '%s' "$held" >"$scratch/one"
        sandbox_id=$(field sandbox_id "$scratch/one") lease_id=$(field lease_id "$scratch/one")
        call POST "/sandboxes/$sandbox_id/extend" --header 'Content-Type: application/json' \
            --data "{\"expires_at\": $expires_at, \"lease_id\": \"$lease_id\"}"
        if [[ $status != 200 || $(field lease_id "$scratch/body") != "$lease_id" ]]; then refused; fi
        cat "$scratch/body"
    done <"$scratch/held"
    ;;
cleanup)
    # Ask the broker what the track holds. The state file may be missing, or older than a setup that got no answer.
    given_back=
    while true; do
        call GET /sandboxes
        if [[ $status != 200 || -n $code || $(<"$scratch/body") != *'"sandboxes":['* ]]; then refused; fi
        sandbox_id=$(field sandbox_id "$scratch/body") lease_id=$(field lease_id "$scratch/body")
        if [[ -z $lease_id ]]; then break; fi
        if [[ $lease_id == "$given_back" ]]; then
            say "gave up: $sandbox_id was given back, but the broker still lists it as held"
            exit 75
        fi
        call POST "/sandboxes/$sandbox_id/mark-for-deletion" \
            --header 'Content-Type: application/json' --data "{\"lease_id\": \"$lease_id\"}"
        case $status/$code in
        403/NOT_SANDBOX_OWNER | 404/SANDBOX_NOT_FOUND | 409/LEASE_MISMATCH)
            say "the broker had already taken it back ($code)"
            ;;
        *)
            if [[ $status != 200 || $(field lease_id "$scratch/body") != "$lease_id" ]]; then refused; fi
            ;;
        esac
        given_back=$lease_id
    done
    if [[ $(<"$scratch/body") != *'"sandboxes":[]'* ]]; then refused; fi
    if [[ -z $given_back ]]; then say "nothing to give back: the track holds no sandbox"; fi
    rm -f "$state"
    ;;
*)
    usage
    ;;
esac
