#!/usr/bin/env bash
# Print a manifest with its placeholders filled from a preset's file here and from the environment, which wins:
#   IMAGE=registry.example/lwz_ray:1 launch/clusters/fill.sh qwen7b_8gpu launch/clusters/kuberay/raycluster.yaml
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

fail() {
    echo "fill.sh: $*" >&2
    exit 2
}

main() {
    local preset="${1:-}" file="${2:-}" line name names text missing=()
    (($# == 2)) || fail "give a preset and a manifest: fill.sh PRESET FILE"
    [[ -f "$here/$preset.env" ]] || fail "'$preset': no $here/$preset.env"
    [[ -f "$file" ]] || fail "'$file': no such file"
    while IFS= read -r line; do
        [[ "$line" =~ ^([A-Z_]+)=(.*)$ ]] || continue
        name="${BASH_REMATCH[1]}"
        [[ -n "${!name:-}" ]] || printf -v "$name" %s "${BASH_REMATCH[2]}"
    done <"$here/$preset.env"
    # Shown in the run's manifest.json; `unknown` where this is no git repository.
    GIT_REVISION="${GIT_REVISION:-$(git -C "$here" rev-parse HEAD 2>/dev/null || echo unknown)}"

    text="$(<"$file")"
    mapfile -t names < <(grep -oE '\$\{[A-Z_]+\}' "$file" | sed 's/[^A-Z_]//g' | sort -u)
    for name in "${names[@]}"; do
        [[ -n "${!name:-}" ]] || missing+=("$name")
        # Quoted: bash would put the placeholder where an unquoted value holds `&`.
        text="${text//"\${$name}"/"${!name:-}"}"
    done
    ((${#missing[@]} == 0)) || fail "set ${missing[*]} for $file: export them first"
    printf '%s\n' "$text"
}

main "$@"
