#!/usr/bin/env bash
# A track's life with curl: `track.sh setup` gets a sandbox, `track.sh cleanup` gives back all that the track holds.
# Both may be repeated.
#
#   BROKER_API_URL  https://broker.example.com/v1
#   BROKER_TOKEN    the track's token
#   TRACK_ID        who holds the sandbox: one id for one student's lab
#   NAME_PREFIX     only sandboxes whose name starts so (optional)
#   STATE_FILE      where setup keeps its answer for the lab (sandbox.json); cleanup asks the broker, and removes it
#   PATIENCE_SEC    how long to go on trying (120)
#
# Exit codes (sysexits.h): 0 done · 64 wrong use · 69 the broker refused, or it is no broker that answers ·
# 73 STATE_FILE cannot be written · 75 try again later · 77 the token is wrong
set -euo pipefail
export LC_ALL=C # in which only ASCII is printable

say() { printf 'track.sh: %s\n' "$*" >&2; }

for name in BROKER_API_URL BROKER_TOKEN TRACK_ID NAME_PREFIX; do
    value=${!name:-}
    if [[ -z $value && $name != NAME_PREFIX || $value == *[![:print:]]* ]]; then
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
trap 'rm -rf "$scratch"' EXIT
umask 077 # the state file names a lease

# Tokens go to curl by a file: arguments can be read by everybody on the machine.
header() { # name value
    local value=${2//\\/\\\\}
    printf 'header = "%s: %s"\n' "$1" "${value//\"/\\\"}" >>"$scratch/curlrc"
}
header Authorization "Bearer $BROKER_TOKEN"
header X-Track-ID "$TRACK_ID"
if [[ -n ${NAME_PREFIX:-} ]]; then header X-Sandbox-Name-Prefix "$NAME_PREFIX"; fi

field() { sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p" "$2" 2>/dev/null || true; }

# Send one request until it is answered for good. An unanswered one is sent again as it is: the broker answers a
# repetition with what the first one got.
call() { # method path [curl's arguments]
    local method=$1 path=$2 pause=1 wait
    shift 2
    while true; do
        : >"$scratch/body" # or that of the answer before would stay
        : >"$scratch/headers"
        status=$(curl --silent --config "$scratch/curlrc" --request "$method" --max-time 10 \
            --dump-header "$scratch/headers" --output "$scratch/body" --write-out '%{http_code}' \
            "$@" "${BROKER_API_URL%/}$path") || status=000
        code=$(field code "$scratch/body")
        case $status/$code in
        000/* | 409/NO_SANDBOXES_AVAILABLE | 429/* | 500/* | 502/* | 503/* | 504/*) ;;
        *) return ;;
        esac
        # Seconds; of a date, which a proxy may send, nothing is taken.
        wait=$(sed -n 's/^[Rr]etry-[Aa]fter: *\([0-9]*\).*/\1/p' "$scratch/headers")
        wait=${wait:-$pause}
        if ((SECONDS + wait > give_up_at)); then
            say "gave up: $method $path was last answered with $status $code"
            exit 75
        fi
        sleep "$wait"
        pause=$((pause < 8 ? pause * 2 : 8))
    done
}

refused() {
    if [[ -n $code ]]; then
        say "$status $code: $(field message "$scratch/body")"
    else
        say "$status, and not as the broker answers: is BROKER_API_URL right?"
    fi
    if [[ $status == 401 ]]; then exit 77; fi
    exit 69
}

case $* in
setup)
    # Before there is something to keep, and emptied: if no answer comes, that of an earlier setup must not pass for it.
    if ! { : >"$state"; } 2>/dev/null; then
        say "$state cannot be written"
        exit 73
    fi
    call POST /allocate
    if [[ $status != 20[01] || -z $(field lease_id "$scratch/body") ]]; then refused; fi
    cp "$scratch/body" "$state"
    cat "$state"
    ;;
cleanup)
    # The broker knows what is held: the state file may be missing, or be older than a setup that got no answer.
    given_back=
    while true; do
        call GET /sandboxes
        if [[ $status != 200 || -n $code || $(<"$scratch/body") != *'"sandboxes":['* ]]; then refused; fi
        sandbox_id=$(field sandbox_id "$scratch/body") lease_id=$(field lease_id "$scratch/body")
        if [[ -z $lease_id ]]; then break; fi
        if [[ $lease_id == "$given_back" ]]; then
            say "gave up: the broker still lists $sandbox_id as held, after it was given back"
            exit 75
        fi
        call POST "/sandboxes/$sandbox_id/mark-for-deletion" \
            --header 'Content-Type: application/json' --data "{\"lease_id\": \"$lease_id\"}"
        case $status/$code in
        403/NOT_SANDBOX_OWNER | 404/SANDBOX_NOT_FOUND | 409/LEASE_MISMATCH)
            say "the broker had taken it back before ($code)"
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
    say "usage: track.sh setup|cleanup"
    exit 64
    ;;
esac
