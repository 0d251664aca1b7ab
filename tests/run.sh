#!/usr/bin/env bash
# Every check and every test, on a machine that may have nothing: installs what is missing (says what), then runs the
# steps below and stops at the first that fails. The last line of a green run is the count of tests.
#
# Usage: tests/run.sh
# Exit status: 0 all passed, 1 a step failed, 2 the machine cannot run it.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=deploy/prerequisites.sh
. deploy/prerequisites.sh

BUILD_GIB=12
# What tests start, and what it brings: pinned, so that a green run stays green.
MILVUS_PACKAGES=(milvus-lite==3.2.2 pymilvus==3.0.2)
S3_PACKAGES=('moto[server]==5.2.5')
ONEDNN_PACKAGE=onednn-cpu-gomp==2023.2.0
HELM_VERSIONS=(1.25.0 1.29.0 1.32.0 1.37.0)
TOOLS=$PWD/target/tools

export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}
export RUSTDOCFLAGS="${RUSTDOCFLAGS:-} -D warnings"

# Without a terminal the log is read afterwards: progress bars would only fill it.
[ -t 2 ] || export CARGO_TERM_PROGRESS_WHEN=never

# step NAME COMMAND...: runs the command under a heading and reports its time.
step() {
    local name=$1 start=$SECONDS status=0
    shift
    printf '\n=== %s\n' "$name"
    "$@" || status=$?
    if [ "$status" -ne 0 ]; then
        if is_disk_full .; then printf 'the disk is full\n'; fi
        printf '\nFAILED: %s (exit status %d, after %d s)\n' "$name" "$status" $((SECONDS - start))
        exit 1
    fi
    printf -- '--- %s: %d s\n' "$name" $((SECONDS - start))
}

skip() { printf '\n=== %s: skipped, %s\n' "$1" "$2"; }

prepare() {
    require_cpu
    require_disk . "$BUILD_GIB"
    install_packages "${BUILD_PACKAGES[@]}"
    install_onednn
    # Where it is installed, a test that cannot open it fails instead of saying so.
    if is_installed "$(onednn_package)"; then export THICKET_TEST_ONEDNN=required; fi
    fetch_other_onednn
    fetch_etcd
    if [ -x "$TOOLS/bin/etcd" ] || command -v etcd >/dev/null; then export THICKET_TEST_ETCD=required; fi
    fetch_python_server milvus milvus_lite "${MILVUS_PACKAGES[@]}"
    if [ -x "$TOOLS/milvus/bin/python" ]; then export THICKET_TEST_MILVUS=$TOOLS/milvus/bin/python; fi
    fetch_python_server s3 moto.server "${S3_PACKAGES[@]}"
    if [ -x "$TOOLS/s3/bin/moto_server" ]; then export THICKET_TEST_S3=required; fi
    require_rust
    fetch_crates
}

# fetch_python_server NAME MODULE PACKAGE...: installs a server that tests start, into target/tools/NAME.
fetch_python_server() {
    local folder=$TOOLS/$1 module=$2
    if [ -x "$folder/bin/python" ] && "$folder/bin/python" -c "import $module" 2>/dev/null; then return 0; fi
    rm -rf "$folder"
    if ! command -v python3 >/dev/null || ! python3 -m venv "$folder" >/dev/null 2>&1; then
        say "Python cannot make an environment here (python3-venv): the tests that start $1 check nothing"
        rm -rf "$folder"
        return 0
    fi
    say "installing ${*:3} into target/tools/$1"
    if ! "$folder/bin/python" -m pip -q install --disable-pip-version-check "${@:3}" >"$folder/log" 2>&1; then
        tail -n 20 "$folder/log" >&2
        say "${*:3} could not be installed: the tests that start $1 check nothing"
        rm -rf "$folder"
    fi
}

# Distributions have one version of oneDNN; its products are tested with one of the other interface too.
fetch_other_onednn() {
    local folder=$TOOLS/onednn library=$TOOLS/onednn/lib/libdnnl.so.3
    if [ ! -e "$library" ]; then
        rm -rf "$folder"
        if ! command -v python3 >/dev/null || ! python3 -m venv "$folder" >/dev/null 2>&1; then
            rm -rf "$folder"
            return 0
        fi
        say "installing $ONEDNN_PACKAGE into target/tools/onednn"
        "$folder/bin/python" -m pip -q install --disable-pip-version-check "$ONEDNN_PACKAGE" >/dev/null 2>&1 || true
    fi
    if [ -e "$library" ]; then
        export THICKET_TEST_ONEDNN_OTHER=$library
    else
        say "$ONEDNN_PACKAGE could not be installed: one version of oneDNN is tested"
    fi
}

# The tests of discovery start etcd. The program alone is taken from its package, because the package would start a service.
fetch_etcd() {
    if [ -x "$TOOLS/bin/etcd" ] || command -v etcd >/dev/null || ! command -v apt-get >/dev/null; then return 0; fi
    refresh_package_lists
    if [ -z "$(apt_candidate etcd-server)" ]; then
        say "etcd (etcd-server) is not to be had here: the tests that start it check nothing"
        return 0
    fi
    say "unpacking etcd from its package into target/tools"
    local folder
    folder=$(mktemp -d)
    if ! (cd "$folder" && apt-get -q download etcd-server && dpkg-deb -x etcd-server_*.deb .) >"$folder/log" 2>&1; then
        tail -n 20 "$folder/log" >&2
        rm -rf "$folder"
        die 1 "the package etcd-server could not be downloaded"
    fi
    install -D -m 755 "$folder/usr/bin/etcd" "$TOOLS/bin/etcd"
    rm -rf "$folder"
}

check_scripts() {
    local scripts
    mapfile -t scripts < <(find deploy tests .ci -name node_modules -prune -o -type f -name '*.sh' -print)
    scripts+=(.ci/run)
    local script
    for script in "${scripts[@]}"; do bash -n "$script" || return 1; done
    if command -v shellcheck >/dev/null; then shellcheck -x "${scripts[@]}"; fi
}

# A newer compiler than the pinned one knows newer lints, which say nothing about this code.
clippy() {
    if [ "$rust_is_pinned" = 1 ]; then
        cargo clippy --locked --release --workspace --all-targets -- -D warnings
    else
        printf 'Rust %s is not the pinned release: findings are shown and do not fail\n' "$(rust_version)"
        cargo clippy --locked --release --workspace --all-targets
    fi
}

# The GPU code is checked against a compiler that writes empty kernels: no GPU, no CUDA and no download are needed. The two
# roles that compute hold all of it; the command, which only hands the feature on, would have FAISS compiled once more.
check_cuda() (
    environment=$(deploy/cuda-toolkit.sh --check target/cuda-check) || exit 1
    eval "$environment"
    cargo check --locked -p thicket-embedding -p thicket-answer \
        --features thicket-embedding/flash-attn,thicket-answer/flash-attn
    # What a GPU has to pass.
    cargo check --locked -p thicket-cuda --features cuda --tests
)

install_nextest() {
    ! cargo nextest --version >/dev/null 2>&1 || return 0
    printf 'installing cargo-nextest into target/tools\n'
    if ! CARGO_TARGET_DIR=$TOOLS/build cargo install --locked --root "$TOOLS" cargo-nextest; then
        printf 'cargo-nextest could not be installed: the tests run under cargo test\n'
    fi
    rm -rf "$TOOLS/build"
}

# Runs a test command, shows its output and adds what it counted to `passed`.
passed=0
counted() {
    local log status=0
    log=$(mktemp)
    "$@" 2>&1 | tee "$log" || status=$?
    local counts
    counts=$(sed -n -e 's/.* tests\{0,1\} run: \([0-9]*\) passed.*/\1/p' \
        -e 's/^test result: ok\. \([0-9]*\) passed.*/\1/p' "$log" | paste -sd+ -)
    rm -f "$log"
    passed=$((passed + ${counts:-0}))
    return "$status"
}

tests() {
    if cargo nextest --version >/dev/null 2>&1; then
        counted cargo nextest run --locked --release --workspace --no-fail-fast
    else
        counted cargo test --locked --release --workspace --lib --bins --tests --no-fail-fast
    fi
}

install_tools() { npm ci --prefix tests/tools --ignore-scripts --no-audit --no-fund; }

check_contract() {
    local buf=tests/tools/node_modules/@bufbuild/buf-linux-x64/bin/buf
    "$buf" lint proto && "$buf" format proto -d --exit-code
}

check_chart() {
    local helm=tests/tools/node_modules/.bin/helm version values
    "$helm" lint --strict helm/thicket || return 1
    for version in "${HELM_VERSIONS[@]}"; do
        for values in /dev/null helm/thicket/ci/*.yaml; do
            "$helm" template release helm/thicket --namespace people --kube-version "$version" \
                --values "$values" >/dev/null || return 1
        done
        printf 'renders for Kubernetes %s\n' "$version"
    done
    # A misspelt value must be refused, not ignored.
    ! "$helm" template release helm/thicket --set galery.replicas=1 >/dev/null 2>&1 \
        || { printf 'the schema accepts an unknown value\n' && return 1; }
}

step "prerequisites" prepare
PATH="$TOOLS/bin:$PATH:$TOOLS/s3/bin"
step "scripts" check_scripts
step "format" cargo fmt --all --check
if command -v npm >/dev/null; then
    step "contract and chart tools" install_tools
    step "contract (buf lint, buf format)" check_contract
    step "chart (helm lint, helm template)" check_chart
else
    skip "contract and chart" "npm is not installed"
fi
if command -v cargo-deny >/dev/null; then
    step "licences, bans, sources (cargo deny)" \
        cargo deny --locked --offline --config .deny.toml check licenses bans sources
else
    skip "licences, bans, sources" "cargo-deny is not installed"
fi
step "clippy" clippy
if command -v git >/dev/null; then
    step "GPU code (cargo check)" check_cuda
else
    skip "GPU code" "git is not installed, which the build script of candle-flash-attn runs"
fi
step "build" cargo build --locked --release --workspace
step "documentation" cargo doc --locked --release --workspace --no-deps
step "test runner" install_nextest
step "tests" tests
step "documentation tests" counted cargo test --locked --release --workspace --doc

printf '\nall steps passed in %d s\n' "$SECONDS"
printf '%d passed, 0 failed\n' "$passed"
