#!/usr/bin/env bash
# Builds the CPU image with buildah, needs no registry, and can see it work.
#
# Usage: deploy/image.sh [--base IMAGE] [--binaries DIR] [--check] [NAME]
#
#   --base IMAGE     what the image is made on; without it a Debian 12 is made with debootstrap, which needs root
#   --binaries DIR   where the five programs are; without it they are built here, as for the release
#   --check          runs the image afterwards as its own user: the version, and `thicket up` until it is ready
#   NAME             name of the image, localhost/thicket:latest unless given
#
# Exit status: 0 done, 1 a step failed, 2 bad usage or the machine cannot do it.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=deploy/prerequisites.sh
. deploy/prerequisites.sh

PROGRAMS=(thicket thicket-answer thicket-coordinator thicket-embedding thicket-gallery)
# What is in the base already, so that nothing is fetched while the image is built: as in deploy/Containerfile.
BASE_PACKAGES=ca-certificates,libdnnl2,libgomp1,libopenblas0-pthread,libstdc++6
BASE=localhost/thicket-base:bookworm
READY_SECONDS=300

base='' binaries='' check='' name=localhost/thicket:latest
while [ "$#" -gt 0 ]; do
    case $1 in
        --base) base=${2:?--base needs an image}; shift ;;
        --binaries) binaries=${2:?--binaries needs a folder}; shift ;;
        --check) check=1 ;;
        -*) die 2 "unknown flag $1; see the head of deploy/image.sh" ;;
        *) name=$1 ;;
    esac
    shift
done

command -v buildah >/dev/null || install_packages buildah
# A container engine's own storage and namespaces need rights that a build machine may not give.
export STORAGE_DRIVER=${STORAGE_DRIVER:-vfs} BUILDAH_ISOLATION=${BUILDAH_ISOLATION:-chroot}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

make_base() {
    [ "$(id -u)" -eq 0 ] || die 2 "debootstrap needs root: name a base with --base"
    command -v debootstrap >/dev/null || install_packages debootstrap
    say "making a Debian 12 base"
    debootstrap --variant=minbase --include="$BASE_PACKAGES" bookworm "$work/root" >"$work/debootstrap.log" 2>&1 \
        || { tail -n 20 "$work/debootstrap.log" >&2; die 1 "debootstrap failed"; }
    rm -rf "$work/root/var/cache/apt/archives/"*.deb "$work/root/var/lib/apt/lists/"*
    local container
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$work/root" / >/dev/null
    buildah commit --quiet "$container" "$BASE" >/dev/null
    buildah rm "$container" >/dev/null
    rm -rf "$work/root"
}

if [ -z "$base" ]; then
    base=$BASE
    buildah inspect --type image "$base" >/dev/null 2>&1 || make_base
fi

if [ -z "$binaries" ]; then
    say "building the programs"
    cargo build --release --workspace --bins
    binaries=${CARGO_TARGET_DIR:-target}/release
fi
mkdir -p "$work/context/bin"
for program in "${PROGRAMS[@]}"; do
    [ -x "$binaries/$program" ] || die 2 "$binaries has no $program"
    install -m 755 "$binaries/$program" "$work/context/bin/"
done
cp -r models "$work/context/models"

say "building $name on $base"
buildah bud --quiet --pull-never --build-arg BASE="$base" -f deploy/Containerfile -t "$name" "$work/context" >/dev/null
say "built $name"
[ -n "$check" ] || exit 0

container=$(buildah from --pull-never "$name")
trap 'buildah rm "$container" >/dev/null 2>&1 || true; rm -rf "$work"' EXIT
for program in "${PROGRAMS[@]}"; do
    buildah run "$container" -- "$program" --version
done
# Inside, in one shell: the cluster must become ready and, told to stop, must drain.
buildah run "$container" -- sh -c "
    thicket up --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 --gallery-listen 127.0.0.1:0 --answer-listen 127.0.0.1:0 \
        --drain-delay 0 >/tmp/up.out 2>/tmp/up.err &
    up=\$!
    waited=0
    until grep -q '^ready;' /tmp/up.out; do
        kill -0 \$up 2>/dev/null && [ \$waited -lt $READY_SECONDS ] || { cat /tmp/up.out /tmp/up.err >&2; exit 1; }
        waited=\$((waited + 1)); sleep 1
    done
    cat /tmp/up.out
    id -u
    kill -TERM \$up
    wait \$up
" || die 1 "thicket up did not work in $name"
say "checked $name"
