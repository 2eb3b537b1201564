#!/usr/bin/env bash
# The tour: five agents, a real NATS server, a command on exactly the three
# nodes that a predicate names; then one node is relabelled, and the next run
# follows. Everything lives in .demo/ and ends with this script.
set -euo pipefail
cd "$(dirname "$0")/.."

bin=$(realpath "${MUSTER_BIN_DIR:-target/debug}")
state=.demo
export PATH="$bin:$PATH"

step() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }
[ -t 1 ] || step() { printf '\n$ %s\n' "$*"; "$@"; }

rm -rf "$state"
mkdir -p "$state"
ready=$state/ready
mkfifo "$ready"
# The command finds the `muster up` that runs here by itself.
export XDG_RUNTIME_DIR=$PWD/$state HOME=$PWD/$state
unset MUSTER_URL MUSTER_TOKEN
muster up --state "$state/state" --listen 127.0.0.1:0 \
    --node web-01:role=web,zone=gva2 \
    --node web-02:role=web,zone=gva2 \
    --node web-03:role=web,zone=dk2 \
    --node db-01:role=db,zone=gva2 \
    --node lb-01:role=lb,zone=dk2 >"$ready" 2>"$state/up.log" &
up=$!
finish() {
    status=$?
    kill -TERM "$up" 2>/dev/null || true
    wait "$up" 2>/dev/null || true
    [ "$status" = 0 ] && rm -rf "$state" || echo "demo: it ended with $status; the logs are in $state" >&2
}
trap finish EXIT

if ! grep -m1 '^ready' <"$ready"; then
    cat "$state/up.log" >&2
    exit 1
fi
step muster nodes
step muster run role=web -- sh -c 'echo "$MUSTER_NODE runs Linux $(uname -r | cut -d. -f1,2)"'
step muster run 'role=web and zone=gva2' -- true
step muster node role db-01 +web
step muster run role=web -- true
step muster runs
echo
echo "What is done again and again is written once: a scenario, stored in the cluster."
cat >"$state/notice.rhai" <<'EOF'
scenario("Say on each machine whose it is");
param("owner", #{ help: "who looks after the machine" });
param("dir", #{ help: "where to say it" });
target("role=web");
allow_check();

fn run(p) {
    let line = `${node().name} is looked after by ${p.owner}`;
    file(`${p.dir}/${node().name}.txt`).content(line + "\n");
    node().labels.zone
}
EOF
step muster scenario put "$state/notice.rhai"
step muster scenario run notice -p owner=ana -p "dir=$PWD/$state" --on zone=gva2 --dry-run
step muster scenario run notice -p owner=ana -p "dir=$PWD/$state" --yes
step muster scenario run notice -p owner=ana -p "dir=$PWD/$state" --yes
echo
echo "A mistake is refused before anything is sent:"
step muster run 'role=web and zoen=gva2' -- uptime || echo "(exit $?)"
