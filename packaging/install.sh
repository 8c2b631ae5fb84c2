#!/usr/bin/env bash
# Installs the executable as `ccoctl`, with the links `ccod` and `knowledge-manager` that choose what it does.
# usage: install.sh PATH_TO_CCOCTL [PREFIX]        PREFIX defaults to ~/.local; DESTDIR is honoured
# Also installs shell completions and what a service manager needs (systemd user units or a launchd agent), without
# enabling it.
set -euo pipefail

executable=${1:?usage: install.sh PATH_TO_CCOCTL [PREFIX]}
prefix=${2:-$HOME/.local}
root=${DESTDIR:-}$prefix
here=$(cd "$(dirname "$0")" && pwd)

install -d "$root/bin"
# Beside the target and renamed over it, so that a running daemon keeps its own file.
install -m 0755 "$executable" "$root/bin/.ccoctl.new"
mv -f "$root/bin/.ccoctl.new" "$root/bin/ccoctl"
ln -sf ccoctl "$root/bin/ccod"
ln -sf ccoctl "$root/bin/knowledge-manager"

install -d "$root/share/bash-completion/completions" "$root/share/zsh/site-functions" \
    "$root/share/fish/vendor_completions.d"
"$executable" completions bash >"$root/share/bash-completion/completions/ccoctl"
"$executable" completions zsh >"$root/share/zsh/site-functions/_ccoctl"
"$executable" completions fish >"$root/share/fish/vendor_completions.d/ccoctl.fish"

fill_in() { sed -e "s|@BINDIR@|$prefix/bin|g" -e "s|@HOME@|$HOME|g" "$1"; }

case "$(uname -s)" in
Linux)
    install -d "$root/share/systemd/user"
    for unit in ccod.service ccod.socket; do
        fill_in "$here/systemd/$unit" >"$root/share/systemd/user/$unit"
    done
    ;;
Darwin)
    install -d "$root/share/ccod"
    fill_in "$here/launchd/org.cco.ccod.plist" >"$root/share/ccod/org.cco.ccod.plist"
    ;;
esac

echo "installed $root/bin/ccoctl (and the links ccod, knowledge-manager)"
case ":$PATH:" in
*":$prefix/bin:"*) ;;
*) echo "note: $prefix/bin is not in your PATH" ;;
esac
