#!/usr/bin/env bash
# Holds the OpenAPI document against a real broker with agents, by
# schemathesis: no 5xx, no answer that the document does not tell of, nothing
# taken that it says is wrong.
#   fuzz-api.sh [ARGUMENT...]     (further arguments of `schemathesis run`)
# MUSTER_FUZZ_TIME is how many seconds it may take (300); MUSTER_FUZZ_CACHE is
# where schemathesis is installed, outside of this tree.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

cache=$(realpath -m "${MUSTER_FUZZ_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/muster-fuzz}")
# Asked, not looked for: it is of no use after an upgrade of Python, or when
# the directory was moved.
if ! "$cache/venv/bin/schemathesis" --version >/dev/null 2>&1; then
    rm -rf "$cache/venv"
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        if ! command -v apt-get >/dev/null; then
            echo "error: python3 with venv is needed, and schemathesis is installed into one" >&2
            exit 2
        fi
        as_root=
        [ "$(id -u)" = 0 ] || as_root=sudo
        $as_root apt-get install -y -qq python3 python3-venv >&2
    fi
    python3 -m venv "$cache/venv"
    "$cache/venv/bin/pip" install --quiet 'schemathesis>=4.20,<5'
fi

bin=$(realpath "${MUSTER_BIN_DIR:-target/debug}")
seconds=${MUSTER_FUZZ_TIME:-300}
work=$(mktemp -d)
export PATH="$bin:$PATH" XDG_RUNTIME_DIR=$work HOME=$work
unset MUSTER_URL MUSTER_TOKEN
up=
finish() {
    status=$?
    if [ -n "$up" ]; then
        kill -TERM "$up" 2>/dev/null || true
        wait "$up" 2>/dev/null || true
    fi
    if [ "$status" = 0 ]; then
        rm -rf "$work"
    else
        echo "fuzz-api: it ended with $status; the logs are in $work" >&2
    fi
}
trap finish EXIT

# There is a webhook, so that its deliveries and its test are more than 404.
(
    umask 077
    cat >"$work/hooks.toml" <<'END'
[hooks.forge]
kind = "github"
secret = "only for the fuzzer"

[triggers.deploy]
when = { kind = "git.push", hook = "forge" }
scenario = "deploy"
role = "operator"
END
)

mkfifo "$work/ready"
muster up --state "$work/state" --listen 127.0.0.1:0 --hooks "$work/hooks.toml" \
    --node web-01:role=web --node db-01:role=db >"$work/ready" 2>"$work/up.log" &
up=$!
if ! line=$(grep -m1 '^ready' <"$work/ready"); then
    cat "$work/up.log" >&2
    exit 1
fi
url=$(grep -o 'https\?://[0-9.:]*' <<<"$line" | head -n1)
token=$(cat "$work/state/admin.token")

# What no answer can be held against:
# - two streams have no end;
streams='^/v1/runs/\{run\}/events$|^/v1/events/watch$'
# - a policy, a freeze or a key that the fuzzer makes is in the way of
#   everything that comes after it: they come last, by themselves.
last='^/v1/(policy|principals|freeze|thaw|keys)'

# All checks but two.
# - positive_data_acceptance, that data which fits the schema is taken:
#   predicates, scripts, ids that have to be there, and CloudEvents of a kind
#   that is not muster's own cannot be told by a schema.
# - ensure_resource_availability, that what was made is there: with an
#   Idempotency-Key that was used before, the answer is that of the first time,
#   also when what was made then is gone again.
fuzz() (
    local time=$1
    shift
    # It keeps what it has found where it is started: there it goes with
    # everything else.
    cd "$work"
    "$cache/venv/bin/schemathesis" run "$url/openapi.json" \
        --header "Authorization: Bearer $token" \
        --checks all --exclude-checks positive_data_acceptance,ensure_resource_availability \
        --max-time "$time" --request-timeout 100 \
        --workers 1 --no-color --continue-on-failure "$@"
)

fuzz $((seconds * 4 / 5)) --exclude-path-regex "$streams|$last" "$@"
# It is still there, and well.
muster status >/dev/null || [ $? = 1 ]
fuzz $((seconds / 5)) --include-path-regex "$last" "$@"
# With the policy that it has now, nobody may be allowed to look at more.
curl -fsS -o "$work/readyz" "$url/readyz"
