# shellcheck shell=bash
# What a machine needs before Thicket can be built. Sourced by deploy/quickstart.sh and tests/run.sh.
#
# Exit status of every failure here: 2, the machine cannot do it; 1, an installation that should work failed.

MIN_RUST=1.90
# shellcheck disable=SC2034 # read by the scripts that source this one
BUILD_PACKAGES=(build-essential ca-certificates cmake libopenblas-dev pkg-config protobuf-compiler)

say() { printf '%s\n' "$*" >&2; }

# die STATUS MESSAGE...: one clear line, and out.
die() {
    local status=$1
    shift
    say "error: $*"
    exit "$status"
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die 2 "installing packages needs root: run this as root, or install sudo"
    fi
}

is_installed() {
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# Version that apt would install, empty when it knows none.
apt_candidate() {
    LC_ALL=C apt-cache policy "$1" 2>/dev/null | awk '/Candidate:/ && $2 != "(none)" { print $2 }'
}

refresh_package_lists() {
    [ -z "${package_lists_are_fresh:-}" ] || return 0
    say "updating apt's package lists"
    as_root apt-get -o DPkg::Lock::Timeout=300 update -qq >&2 \
        || die 1 "apt-get update failed: is there a network connection?"
    package_lists_are_fresh=1
}

# Installs those of the named packages that are missing, and says which.
install_packages() {
    local missing=() package
    for package in "$@"; do
        is_installed "$package" || missing+=("$package")
    done
    [ "${#missing[@]}" -gt 0 ] || return 0
    command -v apt-get >/dev/null \
        || die 2 "this script installs with apt; on another system install the equivalents of: ${missing[*]}"
    refresh_package_lists
    say "installing with apt: ${missing[*]}"
    local log
    log=$(mktemp)
    if ! as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends "${missing[@]}" >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        die 1 "apt-get could not install ${missing[*]}"
    fi
    rm -f "$log"
}

# The package of oneDNN's library, whose name has its version: libdnnl2 (Debian 12), libdnnl3 (Ubuntu 24.04), libdnnl3.6
# (Debian 13). Prints the installed one, else the newest that apt would install; nothing where there is none.
onednn_package() {
    local package newest=
    for package in $(LC_ALL=C apt-cache pkgnames libdnnl 2>/dev/null | grep -E '^libdnnl[23](\.[0-9]+)?$' | sort -V); do
        if is_installed "$package"; then
            echo "$package"
            return 0
        fi
        if [ -n "$(apt_candidate "$package")" ]; then newest=$package; fi
    done
    echo "$newest"
}

# Products go through oneDNN where the distribution has it: without it the models multiply by themselves.
install_onednn() {
    command -v apt-get >/dev/null || return 0
    local package
    package=$(onednn_package)
    if [ -z "$package" ]; then
        refresh_package_lists
        package=$(onednn_package)
    fi
    if [ -n "$package" ]; then
        install_packages "$package"
    else
        say "oneDNN 2 or 3 (libdnnl) is not to be had here: the models multiply without it"
    fi
}

# The product is compiled for x86-64-v3; on less it would die of an illegal instruction.
require_cpu() {
    [ "$(uname -s)" = Linux ] || die 2 "Thicket runs on Linux, not on $(uname -s)"
    [ "$(uname -m)" = x86_64 ] || die 2 "Thicket needs an x86-64 processor, this one is $(uname -m)"
    local flags flag missing=()
    flags=" $(awk -F: '/^flags/ { print $2; exit }' /proc/cpuinfo) "
    for flag in avx2 fma bmi1 bmi2 f16c movbe abm; do
        [[ $flags == *" $flag "* ]] || missing+=("$flag")
    done
    [ "${#missing[@]}" -eq 0 ] || die 2 "this processor lacks ${missing[*]} (x86-64-v3, in servers since 2013)"
}

# require_disk DIRECTORY GIB
require_disk() {
    local free_kib
    free_kib=$(df -Pk "$1" | awk 'NR == 2 { print $4 }')
    [ "$free_kib" -ge $(($2 * 1024 * 1024)) ] \
        || die 2 "the disk of $1 has $((free_kib / 1024)) MiB free, the build needs $2 GiB"
}

rust_version() {
    rustc --version 2>/dev/null | awk '{ print $2 }'
}

at_least() {
    [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]
}

# Makes `cargo` available: the one there is, else rustup from apt, else a recent rustc from apt.
require_rust() {
    local channel
    channel=$(sed -n 's/^channel *= *"\(.*\)"/\1/p' rust-toolchain.toml)
    if ! command -v cargo >/dev/null && [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
        PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    fi
    if ! command -v cargo >/dev/null && ! command -v rustup >/dev/null; then
        install_rust
    fi
    if command -v rustup >/dev/null && ! rustc --version >/dev/null 2>&1; then
        say "installing Rust $channel with rustup"
        rustup toolchain install "$channel" --profile minimal --component clippy --component rustfmt >&2 \
            || die 1 "rustup could not install Rust $channel: is there a network connection?"
    fi
    local version
    version=$(rust_version)
    if [ -z "$version" ] || ! at_least "$MIN_RUST" "$version"; then
        die 2 "Rust $MIN_RUST or newer is needed and ${version:-none} was found: install rustup (https://rustup.rs)"
    fi
    # shellcheck disable=SC2034 # read by the scripts that source this one
    if [ "$version" = "$channel" ]; then rust_is_pinned=1; else rust_is_pinned=0; fi
}

install_rust() {
    command -v apt-get >/dev/null || die 2 "Rust is missing: install rustup (https://rustup.rs)"
    refresh_package_lists
    local web
    web=$(apt_candidate rustc-web)
    if [ -n "$(apt_candidate rustup)" ]; then
        install_packages rustup
    elif [ -n "$web" ] && at_least "$MIN_RUST" "$web"; then
        install_packages rustc-web cargo-web rustfmt-web rust-web-clippy
    else
        die 2 "Rust is missing and apt has no release from $MIN_RUST on: install rustup (https://rustup.rs)"
    fi
}

# Downloads the crates first, so that a network failure does not look like a failed build.
fetch_crates() {
    local attempt
    for attempt in 1 2 3; do
        if cargo fetch --locked --target x86_64-unknown-linux-gnu >&2; then return 0; fi
        say "downloading the crates failed (attempt $attempt of 3)"
        sleep $((attempt * 2))
    done
    is_disk_full . && die 1 "the disk is full"
    die 1 "the crates could not be downloaded: is there a network connection?"
}

# is_disk_full DIRECTORY: less than 100 MiB left.
is_disk_full() {
    [ "$(df -Pk "$1" | awk 'NR == 2 { print $4 }')" -lt 102400 ]
}
