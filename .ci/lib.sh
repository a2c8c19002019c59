# What the steps share: each begins with `. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"`. A step runs from the repository's root,
# asks nothing, needs no account, and leaves nothing behind but what cargo builds.
# shellcheck shell=bash
set -euo pipefail
exec </dev/null
cd "$(dirname "${BASH_SOURCE[0]}")/.."
temp=$(mktemp -d)
trap 'rm -rf "$temp"' EXIT
# Credentials would turn an example against a live platform.
for name in "${!GENESYS_CLOUD@}" "${!GENESYSCLOUD@}" TARGET_CONVERSATION_ID; do unset "$name"; done
export CARGO_TERM_COLOR=never
# A test that panics on purpose would take a minute for its trace under a sanitizer.
export RUST_BACKTRACE=0

fail() {
    echo "FAILED: $*" >&2
    exit 1
}
# skipped WHAT: a check that this machine does not have the tools for.
skipped() {
    echo "SKIPPED: $*"
}
# run COMMAND...: shows a command before it runs.
run() {
    echo "\$ $*"
    "$@"
}
# documented COMMAND: runs a command that the documents promise, so that the two cannot drift apart.
documented() {
    grep -qF "$1" README.md CONTRIBUTING.md docs/*.md examples/README.md || fail "no document has the command: $1"
    local words
    read -ra words <<<"$1"
    run "${words[@]}"
}
# must_complain COMMAND...: a check that cannot fail is none.
must_complain() {
    if ("$@") >"$temp/complaint" 2>&1; then
        fail "self-test: no complaint from: $*"
    fi
    echo "self-test: complains as it should: $(tail -n 1 "$temp/complaint")"
}
# from_pip PROGRAM PACKAGE: the path of a program, installed for this run by pip where it is not in PATH.
from_pip() {
    if command -v "$1"; then return; fi
    python3 -m venv "$temp/pip" >/dev/null 2>&1 || return 0
    timeout 120 "$temp/pip/bin/pip" install --quiet "$2" >/dev/null 2>&1 || return 0
    echo "$temp/pip/bin/$1"
}
# Where cargo builds.
target_folder() {
    cargo metadata --quiet --no-deps --format-version 1 | grep -oE '"target_directory":"[^"]*"' | cut -d'"' -f4
}
# sandbox: runs the stand-in for the platform until the step ends, and exports what points a client at it.
sandbox() {
    run cargo build --quiet --example sandbox
    # A port that is free now; the sandbox says so if it is taken by then.
    local port line
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])' \
        2>/dev/null || echo 28080)
    "$(target_folder)/debug/examples/sandbox" --port "$port" >"$temp/sandbox.txt" 2>&1 &
    sandbox=$!
    trap 'kill "$sandbox" 2>/dev/null || true; rm -rf "$temp"' EXIT
    for _ in $(seq 100); do
        if grep -q Ctrl-C "$temp/sandbox.txt"; then break; fi
        sleep 0.1
    done
    while read -r line; do eval "$line"; done < <(grep '^export ' "$temp/sandbox.txt")
    [ -n "${GENESYS_CLOUD_BASE_URL:-}" ] || fail "the sandbox did not start: $(cat "$temp/sandbox.txt")"
}
