#!/usr/bin/env bash
# Builds a `ccoctl` that carries an engine in its own file.
# usage: bundle.sh ENGINE OUT [CARGO_PROFILE] [ZSTD_LEVEL]
#   ENGINE         the `ccod` to carry
#   OUT            where the one file goes
#   CARGO_PROFILE  of the command line, dist by default
#   ZSTD_LEVEL     19 by default; 1 is quick
# Three variables at compile time describe the engine to the command line: the compressed file, and the hash and the
# length of the program in it.
set -euo pipefail

engine=${1:?usage: bundle.sh ENGINE OUT [CARGO_PROFILE] [ZSTD_LEVEL]}
out=${2:?usage: bundle.sh ENGINE OUT [CARGO_PROFILE] [ZSTD_LEVEL]}
profile=${3:-dist}
level=${4:-19}
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
work=$target/bundle
mkdir -p "$work" "$(dirname "$out")"

sha256() { if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d' ' -f1; }

CCOD_ENGINE_SHA256=$(sha256 "$engine")
CCOD_ENGINE_BYTES=$(wc -c <"$engine" | tr -d ' ')
# The name tells versions apart, so that cargo sees a change.
CCOD_ENGINE_ARCHIVE=$(cd "$work" && pwd)/ccod-$CCOD_ENGINE_SHA256-$level.zst
export CCOD_ENGINE_SHA256 CCOD_ENGINE_BYTES CCOD_ENGINE_ARCHIVE
if [ ! -f "$CCOD_ENGINE_ARCHIVE" ]; then
    rm -f "$work"/*.zst
    zstd -q "-$level" -T0 -f -o "$CCOD_ENGINE_ARCHIVE.part" "$engine"
    mv "$CCOD_ENGINE_ARCHIVE.part" "$CCOD_ENGINE_ARCHIVE"
fi

cargo build --locked --profile "$profile" -p ccod --no-default-features --features bundle --bin ccoctl
directory=$profile
[ "$profile" = dev ] && directory=debug
# Over an existing file, `cp` would keep the mode of that file.
install -m 0755 "$target/$directory/ccoctl" "$out"
