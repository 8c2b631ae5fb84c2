#!/usr/bin/env bash
# Installs `ccoctl` and `ccod`, and the link `knowledge-manager` to the former.
# usage: install.sh DIRECTORY_OF_THE_PROGRAMS [PREFIX]        PREFIX defaults to ~/.local; DESTDIR is honoured
# Also installs shell completions and the files of a service manager (systemd user units or a launchd agent), without
# enabling the service.
set -euo pipefail

programs=${1:?usage: install.sh DIRECTORY_OF_THE_PROGRAMS [PREFIX]}
prefix=${2:-$HOME/.local}
root=${DESTDIR:-}$prefix
here=$(cd "$(dirname "$0")" && pwd)
executable=$programs/ccoctl

install -d "$root/bin"
# The engine first: a command line never meets an older one. Beside the target and renamed over it, so that a running
# daemon keeps its own file; also over the link `ccod` of older installations.
for program in ccod ccoctl; do
    install -m 0755 "$programs/$program" "$root/bin/.$program.new"
    mv -f "$root/bin/.$program.new" "$root/bin/$program"
done
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

echo "installed $root/bin/ccoctl and $root/bin/ccod (and the link knowledge-manager)"
case ":$PATH:" in
*":$prefix/bin:"*) ;;
*) echo "note: $prefix/bin is not in your PATH" ;;
esac
