"""Times the towers of a CLIP ViT-B/16 in Thicket and in PyTorch, alternating, on random weights.

Usage: python embedding.py PATH_TO/embedding FOLDER [--threads N] [--rounds N] [--binary NAME=PATH ...]

PATH_TO/embedding is the example of thicket-clip (`cargo build --release --workspace --example embedding`). Writes a
Hugging Face folder (0.6 GB, f32) to FOLDER where there is none. Every round runs each contestant once; the table has
the medians over the rounds of the median pass, in images or texts a second.
"""

import argparse
import os
import statistics
import subprocess
import time
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

CASES = [("image", 1), ("image", 8), ("image", 64), ("text", 64)]
PASSES = {1: 9, 8: 5, 64: 1}


def make_folder(folder, vocabulary):
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    vision = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, patch_size=16)
    text = dict(vocab_size=vocabulary, eos_token_id=vocabulary - 1)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=512)).save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)


def inputs(kind, batch, model):
    if kind == "image":
        return model.get_image_features, dict(pixel_values=torch.randn(batch, 3, 224, 224, dtype=model.dtype))
    row = list(range(7, 83)) + [model.config.text_config.vocab_size - 1]
    return model.get_text_features, dict(input_ids=torch.tensor([row] * batch))


@torch.no_grad()
def peer_seconds(model, kind, batch):
    run, arguments = inputs(kind, batch, model)
    run(**arguments)
    seconds = []
    for _ in range(PASSES[batch]):
        started = time.perf_counter()
        run(**arguments)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def own_seconds(binary, folder, kind, batch, threads):
    command = [binary, str(folder), kind, str(batch), str(PASSES[batch])]
    environment = os.environ | {"RAYON_NUM_THREADS": str(threads)}
    answer = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return statistics.median(float(value) for value in answer.split())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("embedding")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--binary", action="append", default=[], metavar="NAME=PATH", help="another build to compare")
    arguments = parser.parse_args()
    if not (arguments.folder / "model.safetensors").is_file():
        make_folder(arguments.folder, 49_408)
    torch.set_num_threads(arguments.threads)
    peers = {"torch f32": torch.float32, "torch bf16": torch.bfloat16}
    peers = {name: CLIPModel.from_pretrained(arguments.folder, dtype=dtype).eval() for name, dtype in peers.items()}
    binaries = {"thicket f32": arguments.embedding} | dict(other.split("=", 1) for other in arguments.binary)
    for kind, batch in CASES:
        rates = {name: [] for name in [*binaries, *peers]}
        for _ in range(arguments.rounds):
            for name, binary in binaries.items():
                rates[name].append(batch / own_seconds(binary, arguments.folder, kind, batch, arguments.threads))
            for name, model in peers.items():
                rates[name].append(batch / peer_seconds(model, kind, batch))
        row = ", ".join(f"{name} {statistics.median(values):.2f} (best {max(values):.2f})" for name, values in rates.items())
        print(f"{kind} x {batch}: {row}", flush=True)


if __name__ == "__main__":
    main()
