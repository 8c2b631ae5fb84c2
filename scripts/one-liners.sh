#!/usr/bin/env bash
# Runs the one-liners of docs/protocol.md against a running daemon and checks that each got the answer.
#   scripts/one-liners.sh [SOCKET]
# A program that is not installed is skipped and named. Reads only, except for one item in a project of its own.
set -euo pipefail
cd "$(dirname "$0")/.."

SOCK=${1:-${CCO_SOCKET:-${CCO_HOME:-$HOME/.cco}/run/ccod.sock}}
export SOCK
failed=0
skipped=0

# check NAME PROGRAM EXPECTED COMMAND: EXPECTED is a part of the answer.
check() {
  local name=$1 program=$2 expected=$3 command=$4 answer
  if ! command -v "$program" >/dev/null; then
    echo "skip  $name: $program is not installed"
    skipped=$((skipped + 1))
  elif answer=$(timeout 120 bash -c "$command" 2>&1) && [[ $answer == *"$expected"* ]]; then
    echo "ok    $name: ${answer:0:100}"
  else
    echo "FAIL  $name: ${answer:0:300}" >&2
    failed=$((failed + 1))
  fi
}

text='Tokens of the login service expire after 15 minutes'
params='{"query":"auth token lifetime","project_id":"one-liners"}'

check 'socat, store' socat '"status":' \
  "echo '{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"knowledge.store\",\"params\":{\"text\":\"$text\",\"project_id\":\"one-liners\"}}' | socat -t30 - UNIX-CONNECT:\$SOCK"
check 'socat' socat "$text" \
  "echo '{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"knowledge.search\",\"params\":$params}' | socat -t30 - UNIX-CONNECT:\$SOCK"
if nc -h 2>&1 | grep -q OpenBSD; then
  check 'OpenBSD nc' nc "$text" \
    "echo '{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"knowledge.search\",\"params\":$params}' | nc -N -U \$SOCK"
else
  echo 'skip  OpenBSD nc: not installed, or another nc'
  skipped=$((skipped + 1))
fi
check 'ncat' ncat "$text" \
  "echo '{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"knowledge.search\",\"params\":$params}' | ncat -U \$SOCK"
check 'Python' python3 "$text" "python3 - <<'PY'
import json, os, socket
s = socket.socket(socket.AF_UNIX)
s.connect(os.environ['SOCK'])
s.sendall(json.dumps({'jsonrpc': '2.0', 'id': 1, 'method': 'knowledge.search', 'params': $params}).encode() + b'\n')
print(json.loads(s.makefile().readline())['result']['results'][0]['text'])
PY"
check 'Python, one line' python3 "$text" \
  "python3 -c 'import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.sendall(sys.argv[2].encode()+b\"\\n\"); print(s.makefile().readline(), end=\"\")' \"\$SOCK\" '{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"knowledge.search\",\"params\":$params}'"
check 'several on one connection' socat '"id":"b"' \
  "printf '%s\n' '{\"jsonrpc\":\"2.0\",\"id\":\"a\",\"method\":\"admin.health\"}' '{\"jsonrpc\":\"2.0\",\"id\":\"b\",\"method\":\"rpc.version\"}' | socat -t30 - UNIX-CONNECT:\$SOCK | sort"
check 'the feed' socat '"subscription":"sub-1"' \
  "(echo '{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"knowledge.subscribe\",\"params\":{\"project_id\":\"*\"}}'; sleep 1) | socat - UNIX-CONNECT:\$SOCK"
check 'Rust' cargo "$text" \
  "cargo run --locked --quiet -p ccod-protocol --example search -- \"\$SOCK\" 'auth token lifetime' one-liners"

echo "$failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
