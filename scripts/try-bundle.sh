#!/usr/bin/env bash
# Tries a `ccoctl` that carries its engine, alone in an empty directory: it starts, stores, finds, starts again without
# unpacking, and says what to do where it cannot unpack. Fails if any of these steps fails.
# usage: try-bundle.sh PATH_TO_CCOCTL
set -euo pipefail

place=$(mktemp -d "${TMPDIR:-/tmp}/ccod-bundle.XXXXXX")
for variable in $(env | sed -n 's/^\(CCO_[A-Z0-9_]*\)=.*/\1/p'); do unset "$variable"; done
export CCO_HOME=$place/home
ccoctl=$place/ccoctl
finish() {
    "$ccoctl" daemon stop >/dev/null 2>&1 || true
    rm -rf "$place"
}
trap finish EXIT
fail() {
    printf 'try-bundle: %s\n' "$*" >&2
    exit 1
}
install -m 0755 "${1:?usage: try-bundle.sh PATH_TO_CCOCTL}" "$ccoctl"

"$ccoctl" store 'Retries have a budget of ten percent of the traffic' --type pattern --project p >/dev/null
found=$("$ccoctl" --json search 'what stops a retry storm' --project p)
case $found in *'ten percent'*) ;; *) fail "not found: $found" ;; esac
engine=$(echo "$CCO_HOME"/engine/*/ccod)
[ -x "$engine" ] || fail "no engine in $CCO_HOME/engine"
before=$(ls -i "$engine")
"$ccoctl" daemon stop >/dev/null
"$ccoctl" daemon start >/dev/null
[ "$(ls -i "$engine")" = "$before" ] || fail 'the engine was unpacked again'
"$ccoctl" daemon stop >/dev/null

# A file where the directory belongs: the message says what to do.
export CCO_HOME=$place/other
mkdir -m 700 "$CCO_HOME"
: >"$CCO_HOME/engine"
status=0
told=$("$ccoctl" daemon start 2>&1) || status=$?
[ "$status" -ne 0 ] || fail 'it started without a directory for its engine'
case $told in *'cannot unpack the daemon'*'fix:'*) ;; *) fail "no advice: $told" ;; esac
echo 'try-bundle: ok'
