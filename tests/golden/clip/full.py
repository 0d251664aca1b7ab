"""Compares `thicket embed` with the reference at full size, on random weights. Nothing of it is kept in the repository.

Usage: python full.py PATH_TO/thicket PATH_TO/bpe_simple_vocab_16e6.txt FOLDER

Writes a ViT-B/16 RDE run folder (0.4 GB) and a Hugging Face ViT-L/14 folder (1.7 GB) to FOLDER, embeds texts and images
with both, and prints the largest difference of a value of the unit vectors. Fails above 1e-4.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import hugging_face
import make

LIMIT = 1e-4
TEXTS = [
    "A man in a dark jacket, grey trousers; he walks with a brown bag in his right hand and wears glasses and a hat.",
    "a woman with long black hair & a caf\u00e9 apron",
    "red",
    "the person " * 60,
]


def pictures(folder):
    for index, shape in enumerate([(128, 384), (61, 170), (640, 480)]):
        path = folder / f"picture{index}.png"
        make.picture(*shape, seed=500 + index).save(path)
        yield path


def embed(binary, model, images):
    command = [binary, "embed", "--model", str(model), "--json"]
    command += [part for text in TEXTS for part in ("--text", text)]
    command += [part for image in images for part in ("--image", str(image))]
    started = time.monotonic()
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return np.array(answer["vectors"]), time.monotonic() - started


def unit(rows):
    rows = np.asarray(rows, dtype=np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@torch.no_grad()
def run_folder(folder, vocabulary, images):
    folder.mkdir(parents=True, exist_ok=True)
    size = dict(vision_width=768, vision_layers=12, text_width=512, text_layers=12, embed=512, patch=16, stride=16)
    size |= dict(image=[384, 128], text_length=77, vocab=49_408, tse=1024, tse_hidden=512, ratio=0.3)
    model = make.Model(size).eval()
    make.randomise(model, 5)
    state = {}
    for key, value in model.state_dict().items():
        state["module." + key] = make.as_stored(key, value, None)
        value.copy_(state["module." + key].to(value.dtype))
    torch.save({"model": state, "epoch": 1}, folder / "best.pth")
    (folder / "configs.yaml").write_text(
        "img_size: !!python/tuple\n- 384\n- 128\nstride_size: 16\ntext_length: 77\nselect_ratio: 0.3\n"
    )
    tokenizer = make.Tokenizer(make.read_merges(vocabulary, 49_408 - 514), published=True)
    ids = torch.tensor([tokenizer.encode(text, 77) for text in TEXTS])
    pairs = [model.text(ids[row : row + 1]) for row in range(len(ids))]
    for image in images:
        shrunk = make.resized(Image.open(image).convert("RGB"), (128, 384), Image.BILINEAR)
        pixels = (np.asarray(shrunk, dtype=np.float32) / 255 - np.float32(make.MEAN)) / np.float32(make.STD)
        _, bge, tse = model.image(torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0))
        pairs.append((bge, tse))
    parts = [unit(torch.cat(part).numpy()) for part in zip(*pairs)]
    return np.concatenate(parts, axis=1) / np.sqrt(2)


@torch.no_grad()
def hugging_face_folder(folder, vocabulary, images):
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    merges = make.read_merges(vocabulary, 49_408 - 514)
    letters = list(make.byte_symbols().values())
    symbols = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    symbols += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({symbol: at for at, symbol in enumerate(symbols)}), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2"] + [" ".join(pair) for pair in merges]) + "\n", encoding="utf-8")
    text = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    vision = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=768)).eval()
    hugging_face.randomise(model, 6)
    model.save_pretrained(folder)
    processor = CLIPImageProcessor()
    processor.save_pretrained(folder)
    tokenizer = CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=77, return_tensors="pt")
    rows = [model.get_text_features(**batch).numpy()]
    with hugging_face.rows_first():
        for image in images:
            pixels = processor(Image.open(image).convert("RGB"), return_tensors="pt")["pixel_values"]
            rows.append(model.get_image_features(pixels).numpy())
    return unit(np.concatenate(rows))


def main():
    binary, vocabulary, folder = sys.argv[1:]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    images = list(pictures(folder))
    worst = 0.0
    for name, reference in [("rde-vit-b-16", run_folder), ("hf-vit-l-14", hugging_face_folder)]:
        expected = reference(folder / name, vocabulary, images)
        actual, seconds = embed(binary, folder / name, images)
        differences = np.abs(actual - expected).max(axis=1)
        worst = max(worst, differences.max())
        print(f"{name}: largest difference {differences.max():.2e}, per input {[f'{value:.1e}' for value in differences]}, {seconds:.1f} s")
    sys.exit(int(worst > LIMIT))


if __name__ == "__main__":
    main()
