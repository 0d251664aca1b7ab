"""What every comparison here shares: the machine, runs in turn, medians and one JSON document."""

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import socket
import statistics
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = ["torch", "transformers", "onnxruntime", "openvino", "faiss-cpu", "llama-cpp-python", "numpy", "grpcio"]
# A health response: field 1 is 1.
SERVING = b"\x08\x01"
FEATURES = ["avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16"]
BF16_FEATURES = {"avx512_bf16", "amx_bf16"}


def arguments(description):
    """A parser with what every script takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--binaries", type=pathlib.Path, default=ROOT / "target/release", help="folder of the programs")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "target/peers", help="folder of the results")
    parser.add_argument("--rounds", type=int, default=7, help="timed runs of each side, in turn")
    return parser


def features():
    """The instructions of this processor that matter here."""
    cpu = pathlib.Path("/proc/cpuinfo").read_text()
    flags = next(line for line in cpu.splitlines() if line.startswith("flags")).split()
    return [feature for feature in FEATURES if feature in flags]


def own_types(device):
    """The types that Thicket computes in on a device, the fastest first."""
    return ["bf16", "f32"] if device != "cpu" or BF16_FEATURES & set(features()) else ["f32"]


def said(*command):
    """What a program prints, line by line; nothing where it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []


def machine():
    """What the numbers were measured on."""
    cpu = pathlib.Path("/proc/cpuinfo").read_text()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": next(line.split(":", 1)[1].strip() for line in cpu.splitlines() if line.startswith("model name")),
        "cpu_family_model": [
            int(line.split(":", 1)[1])
            for line in cpu.splitlines()[:8]
            if line.startswith(("cpu family", "model\t"))
        ],
        "features": features(),
        "gpus": said("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES if version(name)},
        "commit": "".join(said("git", "-C", str(ROOT), "rev-parse", "HEAD")),
        "load_at_start": os.getloadavg()[0],
    }


def version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


# Untimed runs of each side before those that count.
UNTIMED = 1


def in_turn(sides, rounds):
    """Runs every side unmeasured, then `rounds` times in turn, the order reversed every other time.

    `sides` maps a name to a function; returns the seconds of each, run by run.
    """
    for run in list(sides.values()) * UNTIMED:
        run()
    seconds = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides) if number % 2 == 0 else reversed(list(sides)):
            start = time.perf_counter()
            sides[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def compared(seconds, ours, work=1):
    """Medians, rates of `work` items a second, and how many times as fast as each peer we were, run by run."""
    rows = {
        name: {
            "median_s": statistics.median(runs),
            "per_second": work / statistics.median(runs),
            "runs_s": runs,
        }
        for name, runs in seconds.items()
    }
    for name, runs in seconds.items():
        if name != ours:
            ratios = [peer / own for peer, own in zip(runs, seconds[ours])]
            rows[name]["times_as_fast_as_it"] = {
                "median": statistics.median(ratios),
                "min": min(ratios),
                "max": max(ratios),
            }
    return rows


def save(out, name, results):
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")
    print(f"wrote {path}", flush=True)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Service:
    """A role of the cluster as a process of its own, reached over loopback; ended and waited for at the end."""

    def __init__(self, program, *flags):
        import grpc

        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self.log = tempfile.NamedTemporaryFile("w+", suffix=".log")
        command = [program, "--listen", self.address, "--admin-listen", "127.0.0.1:0", "--drain-delay", "0s", *flags]
        self.process = subprocess.Popen([str(part) for part in command], stderr=self.log, stdout=self.log)
        self.channel = grpc.insecure_channel(
            self.address,
            options=[("grpc.max_receive_message_length", 64 << 20), ("grpc.max_send_message_length", 64 << 20)],
        )
        health = self.channel.unary_unary("/grpc.health.v1.Health/Check")
        for _ in range(600):
            if self.process.poll() is not None:
                break
            try:
                if health(b"", timeout=5, wait_for_ready=True) == SERVING:
                    return
            except grpc.RpcError:
                pass
            time.sleep(1)
        self.__exit__()
        raise SystemExit(f"{program} did not start:\n{pathlib.Path(self.log.name).read_text()[-2000:]}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.close()
        self.process.terminate()
        self.process.wait(timeout=120)


def stubs():
    """The generated modules of proto/, made anew in a temporary folder."""
    import sys

    from grpc_tools import protoc

    folder = tempfile.mkdtemp(prefix="thicket-stubs-")
    proto = ROOT / "proto"
    files = [str(path) for path in sorted(proto.rglob("*.proto"))]
    if protoc.main(["protoc", f"-I{proto}", f"--python_out={folder}", f"--grpc_python_out={folder}", *files]):
        raise SystemExit("the protocol files do not compile")
    sys.path.insert(0, folder)
