#!/usr/bin/env bash
# From a fresh Debian 12 or Ubuntu 24.04 to a finished demonstration: installs what is missing (says what, asks for
# sudo only then), builds in release mode, runs `thicket demo` and tells where the report is.
#
# Usage: deploy/quickstart.sh [--out DIR] [further options of `thicket demo`]
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
start_directory=$PWD
cd "$root"
# shellcheck source=deploy/prerequisites.sh
. deploy/prerequisites.sh

BUILD_GIB=6
out=$root/target/demo
demo_options=()

usage() {
    cat <<'TEXT'
Usage: deploy/quickstart.sh [--out DIR] [further options of `thicket demo`]

Installs what is missing with apt, builds Thicket and runs the demonstration.
  --out DIR   where report.html goes (default: target/demo in this folder)
TEXT
}

while [ $# -gt 0 ]; do
    case $1 in
        -h | --help)
            usage
            exit 0
            ;;
        --out | --out=*)
            if [ "$1" = --out ]; then
                [ $# -ge 2 ] || die 2 "--out needs a folder"
                out=$2
                shift
            else
                out=${1#--out=}
            fi
            [ -n "$out" ] || die 2 "--out needs a folder"
            [[ $out == /* ]] || out=$start_directory/$out
            ;;
        *) demo_options+=("$1") ;;
    esac
    shift
done

on_interrupt() {
    trap - INT TERM
    say ""
    say "interrupted. Nothing is lost: run deploy/quickstart.sh again and it goes on from here."
    exit "$1"
}
trap 'on_interrupt 130' INT
trap 'on_interrupt 143' TERM

require_cpu
require_disk "$root" "$BUILD_GIB"
install_packages "${BUILD_PACKAGES[@]}"
install_onednn
require_rust
say "downloading the crates"
fetch_crates

say "building Thicket in release mode (the first time takes 15 to 20 minutes on 2 cores)"
build_start=$SECONDS
if ! cargo build --release --locked --offline --workspace --bins >&2; then
    ! is_disk_full "$root" || die 1 "the disk is full: free some space and run this again"
    die 1 "the build failed: the reason is above"
fi
say "built in $((SECONDS - build_start)) s"

mkdir -p "$out" || die 2 "$out cannot be created"
status=0
target/release/thicket demo --out "$out" ${demo_options[@]+"${demo_options[@]}"} || status=$?
case $status in
    0) ;;
    130 | 143) on_interrupt "$status" ;;
    *)
        ! is_disk_full "$out" || say "error: the disk of $out is full"
        die "$status" "thicket demo ended with status $status"
        ;;
esac

say ""
say "The report is at $out/report.html: open it in a browser."
say "Next: target/release/thicket --help"
