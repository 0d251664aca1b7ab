#!/usr/bin/env python3
"""The towers of CLIP ViT-B/16 in Thicket, PyTorch, ONNX Runtime and OpenVINO, on the same random weights. On a GPU
(`--device cuda:0`, programs built with `--features cuda`) Thicket and PyTorch alone.

Forward passes alone, no decoding and no gRPC: 224 x 224 pictures, texts of 77 tokens. Thicket's passes are timed inside its
example `embedding`, those of the others here, pass by pass in turn: what else the machine does changes within seconds. Before
anything is timed the vectors of all sides are compared.
"""

import contextlib
import json
import os
import statistics
import subprocess
import tempfile
import time
from functools import partial

import numpy as np
import torch
from bench import arguments, compared, own_types, save
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

CASES = ["image-1", "image-8", "image-64", "text-1", "text-64"]
PASSES = {1: 7, 8: 3, 64: 1}
GPU_PASSES = {1: 50, 8: 50, 64: 20}
VOCABULARY = 49_408
THREADS = os.cpu_count()
# A side whose passes take longer than this is measured once.
SLOW_SECONDS = 60
# Before each pass: until the threads of the side before have stopped waiting for more work.
PAUSE_SECONDS = 0.05
# The least cosine to f32 that counts as the same vector.
CLOSE = {"f32": 0.999999, "bf16": 0.999}


def make_folder(folder):
    torch.manual_seed(1)
    vision = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, patch_size=16)
    text = dict(vocab_size=VOCABULARY, eos_token_id=VOCABULARY - 1)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=512)).save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)


class Tower(torch.nn.Module):
    """One tower as a function of one tensor, as converters want it."""

    def __init__(self, model, kind):
        super().__init__()
        self.model, self.kind = model, kind

    def forward(self, tensor):
        features = (
            self.model.get_image_features(pixel_values=tensor)
            if self.kind == "image"
            else self.model.get_text_features(input_ids=tensor)
        )
        return features if isinstance(features, torch.Tensor) else features.pooler_output


def inputs(kind, batch, processor):
    generator = np.random.default_rng(5)
    if kind == "text":
        row = list(range(7, 83)) + [VOCABULARY - 1]
        return torch.tensor([row] * batch), None
    pictures = [Image.fromarray(generator.integers(0, 256, (224, 224, 3), dtype=np.uint8)) for _ in range(batch)]
    return processor(images=pictures, return_tensors="pt")["pixel_values"], pictures


def sides(folder, kind, batch, processor, device):
    """Functions of the prepared input, by name."""
    tensor = inputs(kind, batch, processor)[0].to(device)
    found = {}
    for name, dtype in [("f32", torch.float32), ("bf16", torch.bfloat16)]:
        tower = Tower(CLIPModel.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval(), kind).to(device)
        own = tensor.to(dtype) if kind == "image" else tensor

        def run(tower=tower, own=own):
            with torch.inference_mode():
                return tower(own).float().cpu().numpy()

        found[f"torch {name}"] = run
    return found if device != "cpu" else found | converted_sides(folder, kind, tensor)


def converted_sides(folder, kind, tensor):
    """OpenVINO and ONNX Runtime, on the processor."""
    import onnxruntime
    import openvino

    found = {}
    tower = Tower(CLIPModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval(), kind)
    with torch.inference_mode():
        converted = openvino.convert_model(tower, example_input=tensor)
    for name in ("f32", "bf16"):
        settings = {
            "INFERENCE_PRECISION_HINT": name,
            "INFERENCE_NUM_THREADS": THREADS,
            "PERFORMANCE_HINT": "LATENCY",
        }
        compiled = openvino.Core().compile_model(converted, "CPU", settings)
        request = compiled.create_infer_request()
        found[f"openvino {name}"] = lambda request=request: request.infer([tensor.numpy()])[0].copy()
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        with torch.inference_mode():
            torch.onnx.export(tower, (tensor,), file.name, dynamo=False, opset_version=17)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        session = onnxruntime.InferenceSession(file.name, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        found["onnxruntime f32"] = lambda: session.run(None, {name: tensor.numpy()})[0]
    return found


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def check(options, folder, kind, found, processor):
    """Refuses to time sides that give other vectors."""
    reference = unit(found["torch f32"]())
    for name, run in found.items():
        cosine = float((unit(run()) * reference).sum(-1).min())
        if cosine < CLOSE[name.split()[1]]:
            raise SystemExit(f"{name}, {kind}: cosine {cosine} to torch f32")
    if kind == "image":
        _, pictures = inputs(kind, 1, processor)
        for dtype in own_types(options.device):
            own = own_vector(options, folder, pictures[0], dtype)
            cosine, largest = float(own @ reference[0]), float(np.abs(own - reference[0]).max())
            print(f"thicket {dtype}: cosine {cosine:.7f} to torch f32, largest difference {largest:.2e}", flush=True)
            if cosine < CLOSE[dtype] or (dtype == "f32" and largest > 1e-4):
                raise SystemExit(f"thicket {dtype}, {kind}: cosine {cosine}, off by {largest}")


def own_vector(options, folder, picture, dtype):
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        picture.save(file.name)
        command = [options.binaries / "thicket", "embed", "--model", folder, "--image", file.name, "--json"]
        command += ["--device", options.device, "--dtype", dtype]
        answer = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout
    return np.array(json.loads(answer)["vectors"][0])


class OwnPasses:
    """Thicket's passes, in one process as those of the others are."""

    def __init__(self, options, folder, kind, batch, dtype):
        program = options.binaries / "examples/embedding"
        command = [program, folder, kind, batch, "--device", options.device, "--dtype", dtype]
        self.process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(timeout=60)

    def seconds(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def peer_seconds(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def in_turn(passes, count, rounds):
    """The median of `count` passes of each side in each of the rounds, pass by pass in turn, in the other order every other time."""
    seconds = {name: [] for name in passes}
    for _ in range(rounds):
        fast = {name: [] for name, runs in seconds.items() if not runs or runs[0] < SLOW_SECONDS}
        for number in range(count):
            for name in list(fast) if number % 2 == 0 else reversed(list(fast)):
                time.sleep(PAUSE_SECONDS)
                fast[name].append(passes[name]())
        for name, runs in fast.items():
            seconds[name].append(statistics.median(runs))
    return seconds


def main():
    parser = arguments(__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, help="kind and batch")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    parser.add_argument("--types", nargs="+", choices=CLOSE, default=list(CLOSE), help="types that are timed; all are compared")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    results = {}
    own = [dtype for dtype in own_types(options.device) if dtype in options.types]
    if not own:
        raise SystemExit(f"nothing of this machine's {own_types(options.device)} is among --types {options.types}")
    with tempfile.TemporaryDirectory() as folder:
        make_folder(folder)
        processor = CLIPImageProcessor()
        for case in options.cases:
            kind, batch = case.split("-")[0], int(case.split("-")[1])
            found = sides(folder, kind, batch, processor, options.device)
            check(options, folder, kind, found, processor)
            found = {name: run for name, run in found.items() if name.split()[1] in options.types}
            count = (PASSES if options.device == "cpu" else GPU_PASSES)[batch]
            with contextlib.ExitStack() as programs:
                passes = {}
                for dtype in own:
                    program = programs.enter_context(OwnPasses(options, folder, kind, batch, dtype))
                    passes[f"thicket {dtype}"] = program.seconds
                passes |= {name: partial(peer_seconds, run) for name, run in found.items()}
                # Loads the programs, and lets every side come to its speed.
                in_turn(passes, 1, 1)
                seconds = in_turn(passes, count, options.rounds)
            results[f"{kind}, batch {batch}"] = compared(seconds, f"thicket {own[0]}", batch)
            rates = {name: round(row["per_second"], 2) for name, row in results[f"{kind}, batch {batch}"].items()}
            print(kind, batch, rates, flush=True)
            save(options.out, "embedding", results)


if __name__ == "__main__":
    main()
