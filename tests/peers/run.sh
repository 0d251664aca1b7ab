#!/usr/bin/env bash
# Installs the peers into an environment of their own and compares Thicket with them, in turn on this machine.
#
# Usage: tests/peers/run.sh [--rounds N] [SCRIPT...]
#   SCRIPT      embedding, answers, job, gallery, growth; all of them unless given
#   --rounds N  timed runs of each side, in turn (7 unless given)
# Results: target/peers/*.json. Needs python3 with venv, 10 GB of disk, for a million vectors 20 GB more and 16 GiB of memory.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
environment=target/peers/venv
options=()
if [ "${1:-}" = --rounds ]; then
    options=(--rounds "${2:?--rounds needs a number}")
    shift 2
fi
all=(embedding answers job gallery growth)
scripts=("$@")
[ "${#scripts[@]}" -gt 0 ] || scripts=("${all[@]}")
for script in "${scripts[@]}"; do
    if [[ " ${all[*]} " != *" $script "* ]]; then
        echo "no such comparison: $script (there are: ${all[*]})" >&2
        exit 2
    fi
done

if [ ! -x "$environment/bin/python" ]; then
    python3 -m venv "$environment"
    "$environment/bin/pip" install --quiet --requirement tests/peers/requirements.txt
fi
cargo build --locked --release --workspace --bins --example embedding
for script in "${scripts[@]}"; do
    "$environment/bin/python" "tests/peers/$script.py" "${options[@]}"
done
