#!/usr/bin/env bash
# Make this machine a node of a Ray cluster with token authentication; stays in the foreground:
#   launch/clusters/node.sh head [options of ray start]
#   launch/clusters/node.sh worker HEAD:PORT [options of ray start]
#
# The token comes from RAY_AUTH_TOKEN, from the file that RAY_AUTH_TOKEN_PATH names, or from ~/.ray/auth_token. A head
# makes that last file where there is no token; a worker without one is refused. It is never put on a command line.
set -euo pipefail

repo="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
default_token="$HOME/.ray/auth_token"

fail() {
    echo "node.sh: $*" >&2
    exit 2
}

has_token() { [[ -n "${RAY_AUTH_TOKEN:-}" || -s "${RAY_AUTH_TOKEN_PATH:-$default_token}" ]]; }

# Ray actors and jobs run the `python` that is first on this PATH.
find_ray() {
    local folder
    for folder in "$repo/.venv-cuda" "$repo/.venv"; do
        command -v ray >/dev/null && return
        [[ -x "$folder/bin/ray" ]] && export PATH="$folder/bin:$PATH"
    done
    command -v ray >/dev/null || fail "no ray on PATH and none in $repo/.venv-cuda; run launch/setup_env.sh --device cuda"
}

main() {
    local role="${1:-}"
    export RAY_AUTH_MODE=token # refuse to talk without a token, in both directions
    find_ray
    case "$role" in
        head)
            shift
            if ! has_token; then
                [[ -z "${RAY_AUTH_TOKEN_PATH:-}" ]] || fail "RAY_AUTH_TOKEN_PATH=$RAY_AUTH_TOKEN_PATH: no token in it"
                (umask 077 && ray get-auth-token --generate >/dev/null)
                echo "node.sh: made a token in $default_token; every other node and whoever submits needs it there"
            fi
            exec ray start --head --block --disable-usage-stats --port=6379 "$@"
            ;;
        worker)
            [[ "${2:-}" == *:* ]] || fail "worker ${2:-}: name the head as HOST:PORT"
            local head="$2"
            shift 2
            has_token || fail "no token: copy the head's $default_token here, or set RAY_AUTH_TOKEN_PATH"
            exec ray start --address="$head" --block "$@"
            ;;
        *) fail "'$role': say head, or worker HEAD:PORT" ;;
    esac
}

main "$@"
