#!/usr/bin/env bash
# Installs the programs that the build and the demo need besides cargo, make and a C compiler, if they are missing:
#   protoc with its standard .proto files   LanceDB's build scripts run it
#   socat                                   the demo and the socket tests talk through it
#   strace (Linux)                          the power cut test records system calls with it
#   zstd                                    `make dist` compresses the engine with it
# Prints what it installs. Ends at once when nothing is missing.
set -euo pipefail

say() { printf 'install-deps: %s\n' "$*" >&2; }

missing=()

have_proto_files() {
    # protoc looks beside itself (../include) and in the system's include directory.
    local protoc_path prefix
    protoc_path=$(command -v "${PROTOC:-protoc}") || return 1
    prefix=$(dirname "$(dirname "$protoc_path")")
    for directory in "${PROTOC_INCLUDE:-}" "$prefix/include" /usr/include /usr/local/include /opt/homebrew/include; do
        if [ -n "$directory" ] && [ -f "$directory/google/protobuf/empty.proto" ]; then
            return 0
        fi
    done
    return 1
}

have_linker() { command -v cc >/dev/null 2>&1 || command -v gcc >/dev/null 2>&1 || command -v clang >/dev/null 2>&1; }

command -v cargo >/dev/null 2>&1 || {
    say "cargo is not installed; get it from https://rustup.rs and run this again"
    exit 1
}

case "$(uname -s)" in
Linux)
    command -v "${PROTOC:-protoc}" >/dev/null 2>&1 || missing+=(protobuf-compiler)
    have_proto_files || missing+=(libprotobuf-dev)
    command -v socat >/dev/null 2>&1 || missing+=(socat)
    command -v zstd >/dev/null 2>&1 || missing+=(zstd)
    command -v strace >/dev/null 2>&1 || missing+=(strace)
    have_linker || missing+=(gcc libc6-dev)
    [ ${#missing[@]} -eq 0 ] && exit 0
    if ! command -v apt-get >/dev/null 2>&1; then
        say "not a Debian-like system; install the equivalents of: ${missing[*]}"
        exit 1
    fi
    as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null 2>&1 || {
            say "needs root to install ${missing[*]}; run: apt-get install ${missing[*]}"
            exit 1
        }
        as_root=(sudo)
    fi
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    # The lists of a fresh machine are often absent or stale: refresh them only if the first try fails.
    "${as_root[@]}" apt-get install -y --no-install-recommends "${missing[@]}" </dev/null >&2 || {
        "${as_root[@]}" apt-get update </dev/null >&2
        "${as_root[@]}" apt-get install -y --no-install-recommends "${missing[@]}" </dev/null >&2
    }
    ;;
Darwin)
    # Homebrew's protobuf brings protoc and the .proto files in one formula.
    { command -v "${PROTOC:-protoc}" >/dev/null 2>&1 && have_proto_files; } || missing+=(protobuf)
    command -v socat >/dev/null 2>&1 || missing+=(socat)
    command -v zstd >/dev/null 2>&1 || missing+=(zstd)
    have_linker || {
        say "no C compiler; run: xcode-select --install"
        exit 1
    }
    [ ${#missing[@]} -eq 0 ] && exit 0
    command -v brew >/dev/null 2>&1 || {
        say "Homebrew is not installed (https://brew.sh); install ${missing[*]} by hand"
        exit 1
    }
    say "installing ${missing[*]}"
    brew install "${missing[@]}" </dev/null >&2
    ;;
*)
    say "unknown system $(uname -s); this builds on Linux and macOS"
    exit 1
    ;;
esac
