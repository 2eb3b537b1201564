#!/usr/bin/env bash
# Holds the OpenAPI document against a real broker with agents, by
# schemathesis: no 5xx, no answer that the document does not tell of, nothing
# taken that it says is wrong.
#   fuzz-api.sh [ARGUMENT...]     (further arguments of `schemathesis run`)
# MUSTER_FUZZ_TIME is how many seconds it may take (300); MUSTER_FUZZ_CACHE is
# where schemathesis is installed, outside of this tree.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

cache=${MUSTER_FUZZ_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/muster-fuzz}
if [ ! -x "$cache/venv/bin/schemathesis" ]; then
    python3 -m venv "$cache/venv" || {
        echo "error: python3 with venv is needed: apt install python3-venv" >&2
        exit 2
    }
    "$cache/venv/bin/pip" install --quiet 'schemathesis>=4.20,<5'
fi

bin=$(realpath "${MUSTER_BIN_DIR:-target/debug}")
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

mkfifo "$work/ready"
muster up --state "$work/state" --listen 127.0.0.1:0 \
    --node web-01:role=web --node db-01:role=db >"$work/ready" 2>"$work/up.log" &
up=$!
if ! line=$(grep -m1 '^ready' <"$work/ready"); then
    cat "$work/up.log" >&2
    exit 1
fi
url=$(grep -o 'https\?://[0-9.:]*' <<<"$line" | head -n1)
token=$(cat "$work/state/admin.token")

# What ends or changes the cluster below the feet of the fuzzer, what streams
# for ever, and what agents send with keys of their own are left out; and the
# probes, which answer 503 as long as they have to.
"$cache/venv/bin/schemathesis" run "$url/openapi.json" \
    --header "Authorization: Bearer $token" \
    --exclude-path-regex '/backup$|/events$|^/metrics$|^/readyz$|/brokers/kit$|^/v1/freeze|/keys/|^/v1/policy' \
    --checks all \
    --exclude-checks ignored_auth,use_after_free,ensure_resource_availability,positive_data_acceptance,missing_required_header,max_response_time \
    --max-time "${MUSTER_FUZZ_TIME:-300}" --request-timeout 100 \
    --workers 1 --no-color --continue-on-failure "$@"
# It is still there, and well.
muster status >/dev/null || [ $? = 1 ]
