#!/usr/bin/env bash
# Puts a CUDA 13.0 compiler and its libraries into a folder, out of the wheels that NVIDIA publishes for Python, so that
# the `cuda` feature builds where there is no GPU, no driver and no CUDA. Prints the environment to build in:
#
#   eval "$(deploy/cuda-toolkit.sh .cuda)" && cargo build --release -p thicket --features cuda
#   eval "$(deploy/cuda-toolkit.sh --flash-attn .cuda)" && cargo build --release -p thicket --features flash-attn
#   (eval "$(deploy/cuda-toolkit.sh --check target/cuda-check)" && cargo check -p thicket-answer --features flash-attn)
#
# Usage: deploy/cuda-toolkit.sh [--check | --flash-attn] FOLDER
#   --check       downloads nothing: the compiler in FOLDER writes empty files, which is enough for `cargo check`. Builds
#                 must never see them, so the environment has a target folder of its own: use a subshell, as above.
#   --flash-attn  adds the CUTLASS headers, which the `flash-attn` feature is compiled with
# Environment:
#   CUDA_COMPUTE_CAP  oldest GPU generation that the build runs on; 86, the RTX 3090's, unless given
#   PYTHON            with pip or venv; python3 unless given
# Exit status: 0 done, 1 a download or an installation failed, 2 bad usage or a machine that cannot do it.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=deploy/prerequisites.sh
. "$here/prerequisites.sh"

RELEASE=13.0
# What one release of the toolkit consists of, with versions that belong together.
PARTS=(
    nvidia-cublas==13.1.0.3
    nvidia-cuda-cccl==13.0.85
    nvidia-cuda-crt==13.0.88
    nvidia-cuda-nvcc==13.0.88
    nvidia-cuda-nvrtc==13.0.88
    nvidia-cuda-runtime==13.0.96
    nvidia-curand==10.4.0.35
    nvidia-nvvm==13.0.88
)
# The build script of candle-flash-attn clones this commit of CUTLASS unless it finds a checkout of it; the wheel holds the
# same headers.
CUTLASS_PART=nvidia-cutlass==3.5.0.0
CUTLASS_COMMIT=7d49e6c7e2f8896c47f586706e67e1fb215529dc

usage() { die 2 "usage: deploy/cuda-toolkit.sh [--check | --flash-attn] FOLDER"; }

mode=build
case ${1:-} in
    --check | --flash-attn)
        mode=${1#--}
        shift
        ;;
esac
[ $# -eq 1 ] && [[ $1 != -* ]] && [ -n "$1" ] || usage
mkdir -p "$1" || die 2 "$1 cannot be created"
folder=$(cd "$1" && pwd)
capability=${CUDA_COMPUTE_CAP:-86}
[[ $capability =~ ^[0-9]{2,3}$ ]] || die 2 "CUDA_COMPUTE_CAP: two or three digits such as 86 expected, got $capability"
python=${PYTHON:-python3}

# A finished folder is replaced part by part, so one that holds something else is left alone.
mark=$folder/.thicket-cuda
[ -e "$mark" ] || [ -z "$(ls -A "$folder")" ] || die 2 "$folder holds something else"
touch "$mark"

assign() { printf 'export %s=%q\n' "$1" "$2"; }

# A repository without objects whose HEAD is the wanted commit: all that is looked at before the headers are used.
pose_as_cutlass() {
    command -v git >/dev/null || die 2 "git is needed"
    mkdir -p "$1/include"
    git -c init.defaultBranch=main init --quiet "$1" >&2
    printf '%s\n' "$CUTLASS_COMMIT" >"$1/.git/HEAD"
}

cutlass_checkout() { printf '%s/git/checkouts/cutlass-%s' "$1" "${CUTLASS_COMMIT:0:16}"; }

make_idle_compiler() {
    mkdir -p "$folder/bin"
    cat >"$folder/bin/nvcc" <<'SH'
#!/usr/bin/env bash
# Takes nvcc's arguments and writes the files it would write, empty.
set -euo pipefail
object='' into=. form=object source=''
while [ $# -gt 0 ]; do
    case $1 in
        -o | --output-file) object=$2; shift ;;
        --output-directory | -odir) into=$2; shift ;;
        --ptx | -ptx) form=ptx ;;
        --lib | -lib) form=library ;;
        *.cu) source=$(basename "$1" .cu) ;;
    esac
    shift
done
case $form in
    ptx) : >"${object:-$into/$source.ptx}" ;;
    library) printf '!<arch>\n' >"$object" ;;
    object) [ -z "$object" ] || : >"$object" ;;
esac
SH
    chmod +x "$folder/bin/nvcc"
}

if [ "$mode" = check ]; then
    make_idle_compiler
    pose_as_cutlass "$(cutlass_checkout "$folder/cudaforge")"
    assign NVCC "$folder/bin/nvcc"
    assign CUDA_COMPUTE_CAP "$capability"
    assign CUDARC_CUDA_VERSION 13000
    assign CUDAFORGE_HOME "$folder/cudaforge"
    assign CARGO_TARGET_DIR "$folder/target"
    exit 0
fi

[ "$(uname -sm)" = "Linux x86_64" ] || die 2 "the toolkit's parts are for Linux on x86-64, this is $(uname -sm)"
for tool in gcc g++ "$python"; do command -v "$tool" >/dev/null || die 2 "$tool is needed"; done

# fetch INTO PART...: wheels, whose versions the pins name
fetch() {
    local into=$1
    shift
    if ! "$python" -m pip --version >/dev/null 2>&1; then
        "$python" -m venv "$folder/python" >&2 || die 2 "$python has neither pip nor venv"
        python=$folder/python/bin/python
    fi
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest "$into" "$@" >&2 \
        || die 1 "the parts could not be downloaded: is there a network connection?"
}

# extract PREFIX INTO WHEEL...: the files below PREFIX, executable where they were
extract() {
    "$python" - "$@" <<'PY'
import pathlib
import shutil
import sys
import zipfile

prefix, into, *wheels = sys.argv[1:]
for wheel in wheels:
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            if entry.is_dir() or not entry.filename.startswith(prefix):
                continue
            target = pathlib.Path(into, entry.filename.removeprefix(prefix))
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink)
            if entry.external_attr >> 16 & 0o100:
                target.chmod(0o755)
PY
}

# libcuda belongs to the driver. To link against it only its name and its functions are needed; every one of these answers
# CUDA_ERROR_STUB_LIBRARY (34), so that a program that meets them says so.
make_driver_stub() {
    mkdir -p "$folder/lib/stubs"
    grep -ohE '\bcu[A-Z][A-Za-z0-9_]*' "$folder/include/cuda.h" | sort -u | awk '
        BEGIN { print ".text" }
        { printf ".globl %s\n.type %s, @function\n%s:\n", $1, $1, $1 }
        END { print "\tmovl $34, %eax\n\tret\n.section .note.GNU-stack,\"\",@progbits" }
    ' | gcc -x assembler -shared -nostdlib -Wl,-soname,libcuda.so.1 -o "$folder/lib/stubs/libcuda.so" -
    ln -sf libcuda.so "$folder/lib/stubs/libcuda.so.1"
}

assemble() {
    say "downloading CUDA $RELEASE, about 680 MB"
    rm -rf "${folder:?}"/{bin,include,lib,lib64,nvvm,parts}
    fetch "$folder/parts" "${PARTS[@]}"
    extract nvidia/cu13/ "$folder" "$folder"/parts/*.whl
    rm -r "$folder/parts"
    ln -s lib "$folder/lib64"
    # The wheels have no names without a version, which is what a linker looks for.
    local library
    for library in cublas cublasLt cudart curand nvrtc; do
        ln -sf "$(basename "$folder"/lib/lib$library.so.*)" "$folder/lib/lib$library.so"
    done
    make_driver_stub
    "$folder/bin/nvcc" --version | grep -q "release $RELEASE" || die 1 "the compiler in $folder does not run"
    printf '%s\n' "${PARTS[@]}" >"$mark"
    say "CUDA $RELEASE is in $folder ($(du -sh "$folder" | cut -f1))"
}

printf '%s\n' "${PARTS[@]}" | cmp -s - "$mark" || assemble
if [ "$mode" = flash-attn ]; then
    checkout=$(cutlass_checkout "$folder/cudaforge")
    if [ ! -e "$checkout/.git/HEAD" ]; then
        say "downloading the CUTLASS headers, 4 MB"
        fetch "$folder/parts" "$CUTLASS_PART"
        for part in include tools/util/include; do
            extract "cutlass_library/source/$part/" "$checkout/$part" "$folder"/parts/nvidia_cutlass-*.whl
        done
        rm -r "$folder/parts"
        pose_as_cutlass "$checkout"
    fi
fi

assign CUDA_HOME "$folder"
assign NVCC "$folder/bin/nvcc"
assign CUDA_COMPUTE_CAP "$capability"
assign CUDAFORGE_HOME "$folder/cudaforge"
printf 'export PATH=%q:"$PATH"\n' "$folder/bin"
# Some kernels are compiled to machine code of that one generation; their PTX beside it serves every later one. From 90 on
# the compiler is asked for code of one generation alone, which has no such PTX.
if [ "$capability" -lt 90 ]; then
    assign NVCC_APPEND_FLAGS "-gencode=arch=compute_$capability,code=compute_$capability"
else
    printf 'unset NVCC_APPEND_FLAGS\n'
fi
