#!/usr/bin/env bash
# Builds the shipped programs, with cargo's profile `dist`, into $CARGO_TARGET_DIR/ship:
#   two/ccod, two/ccoctl   two programs, for packages
#   ccoctl                 both in one file, which unpacks `ccod` at the first start
# and prints their sizes.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
ship=$target/ship
mkdir -p "$ship/two"

# Relative relocations in a few bits each. The loaders of older systems do not know them.
flags=()
if [ "$(uname -s)" = Linux ] && [ "$(getconf GNU_LIBC_VERSION 2>/dev/null | sed 's/.* 2\.//')" -ge 36 ] 2>/dev/null; then
    flags=(-C link-arg=-Wl,-z,pack-relative-relocs)
fi
cargo rustc --locked --profile dist --bin ccod -- "${flags[@]}"
cp "$target/dist/ccod" "$ship/two/ccod"
cargo build --locked --profile dist -p ccod --no-default-features --bin ccoctl
cp "$target/dist/ccoctl" "$ship/two/ccoctl"
scripts/bundle.sh "$ship/two/ccod" "$ship/ccoctl"

for file in two/ccod two/ccoctl ccoctl; do
    printf '%12d bytes  %s\n' "$(wc -c <"$ship/$file")" "$ship/$file"
done
