#!/usr/bin/env bash
# The demonstration behind `make demo`: a daemon on an empty home, 48 items of a made-up software project, and
# searches by meaning, by keyword and through socat, each with its time. Checks that every search finds the item
# it is about as the first one, and fails otherwise.
# usage: demo.sh PATH_TO_CCOCTL
set -euo pipefail

ccoctl=${1:?usage: demo.sh PATH_TO_CCOCTL}
root=$(cd "$(dirname "$0")/.." && pwd)
items=$root/packaging/demo/items.jsonl
project=quaymaster

# Nothing of the person's own daemon: another home, and no setting from the environment.
for variable in $(env | sed -n 's/^\(CCO_[A-Z0-9_]*\)=.*/\1/p'); do unset "$variable"; done
CCO_HOME=$(mktemp -d "${TMPDIR:-/tmp}/ccod-demo.XXXXXX")
export CCO_HOME
socket=$CCO_HOME/run/ccod.sock
failures=0

finish() {
    "$ccoctl" daemon stop >/dev/null 2>&1 || true
    rm -rf "$CCO_HOME"
}
trap finish EXIT

title() { printf '\n\033[1m%s\033[0m\n' "$*"; }
if [ ! -t 1 ] || [ -n "${NO_COLOR:-}" ]; then title() { printf '\n%s\n' "$*"; }; fi

# Runs a command, shows its output and leaves its wall time (milliseconds) in $wall.
timed() {
    local seconds status=0
    exec 3>&1 4>&2
    TIMEFORMAT=%R
    seconds=$({ time "$@" 1>&3 2>&4; } 2>&1) || status=$?
    exec 3>&- 4>&-
    wall=$(awk -v s="$seconds" 'BEGIN { printf "%d", s * 1000 }')
    return $status
}

field() { grep -o "\"$1\":[0-9.]*" | head -n 1 | cut -d: -f2; }
first_id() { grep -o '"results":\[{"id":"[^"]*"' | head -n 1 | cut -d'"' -f6; }

expect_first() { # description, JSON of a search result, expected id
    local found
    found=$(printf '%s\n' "$2" | first_id)
    if [ "$found" = "$3" ]; then
        printf '   ok: %s is first; %s ms in the daemon\n' "$3" "$(printf '%s\n' "$2" | field took_ms)"
    else
        printf '   FAILED: expected %s first, found %s (%s)\n' "$3" "${found:-nothing}" "$1"
        failures=$((failures + 1))
    fi
}

search() { # expected id, mode, query
    title "\$ ccoctl search '$3' --mode $2"
    timed "$ccoctl" search "$3" --mode "$2" --project "$project" --limit 2
    printf '   %s ms for the whole command\n' "$wall"
    expect_first "$3" "$("$ccoctl" --json search "$3" --mode "$2" --project "$project" --limit 2)" "$1"
}

title "1. Start a daemon on an empty home"
timed "$ccoctl" daemon start
printf '   %s ms until the socket answered\n' "$wall"

title "2. Store $(grep -c . "$items") items with one call (the model loads now, once)"
request=$(printf '{"project_id":"%s","items":[%s]}' "$project" "$(paste -s -d , - <"$items")")
store() { printf '%s' "$request" | "$ccoctl" rpc knowledge.store_batch -; }
stored=$(mktemp "$CCO_HOME/stored.XXXXXX")
timed store >"$stored"
printf '   %s stored, %s failed; %s ms\n' "$(field stored <"$stored")" "$(field failed <"$stored")" "$wall"
if [ "$(field stored <"$stored")" != "$(grep -c . "$items")" ]; then
    cat "$stored"
    failures=$((failures + 1))
fi

title "3. Search by meaning; the last one is about a passage in the middle of a long text"
search demo-31 vector 'why did customers get duplicate text messages'
search demo-16 vector 'printing when the network is gone'
search demo-02 vector 'how does a user log in'
search demo-37 hybrid 'one huge message blocked the queue and consumers kept reconnecting'

title "4. Search by keyword: identifiers and error codes"
search demo-32 text 'E0277'
search demo-17 text 'parseConfigV2'
search demo-34 hybrid '40001'

title "5. One line of shell through the socket"
question='{"jsonrpc":"2.0","id":1,"method":"knowledge.search","params":{"project_id":"'$project'","query":"where are passwords and keys kept","limit":1}}'
printf "\$ echo '%s' \\\\\n    | socat -t30 - UNIX-CONNECT:%s\n" "$question" "$socket"
ask() { printf '%s\n' "$question" | socat -t30 - "UNIX-CONNECT:$socket"; }
answer=$(mktemp "$CCO_HOME/answer.XXXXXX")
timed ask >"$answer"
cut -c 1-400 "$answer"
printf '   %s ms for the whole command\n' "$wall"
expect_first socat "$(cat "$answer")" demo-29

title "6. What the store holds"
"$ccoctl" stats --project "$project"

title "7. Stop"
"$ccoctl" daemon stop

if [ "$failures" -gt 0 ]; then
    printf '\n%s checks FAILED\n' "$failures"
    exit 1
fi
printf '\nEvery search found its item. The next two commands: `make test` and `make install`.\n'
