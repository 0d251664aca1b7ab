"""Makes the goldens of Hugging Face CLIP folders. See README.md beside this file.

Usage: python hugging_face.py   (packages: torch, transformers==4.57.6, safetensors, Pillow)
"""

import contextlib
import json
import math
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizerFast

import make

HERE = Path(__file__).resolve().parent
TEXTS = make.TEXTS + [
    "",
    "Hat <|endoftext|> after",
    "&amp; caf\u00e9 sch\u00c3\u00b6n e\u0301",
    "the person wears glasses, a green scarf, a striped sweater, black shoes, a pink hat and much more than fits",
]


@contextlib.contextmanager
def rows_first():
    """Makes Pillow resize as `make.resized` does, wherever it is called."""
    whole = Image.Image.resize

    def resize(image, size, resample=None, **_):
        return whole(whole(image, (size[0], image.height), resample), size, resample)

    Image.Image.resize = resize
    try:
        yield
    finally:
        Image.Image.resize = whole


def randomise(model, seed):
    """Weights at the scale of a trained model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            if "norm" in name or "layrnorm" in name:
                tensor.copy_(noise * 0.2 + (1.0 if name.endswith("weight") else 0.0))
            elif name.endswith("bias"):
                tensor.copy_(noise * 0.1)
            elif "embedding" in name and "patch" not in name:
                tensor.copy_(noise * 0.5)
            elif name != "logit_scale":
                tensor.copy_(noise * 1.6 / math.sqrt(tensor[0].numel()))


def make_vocabulary(folder, size):
    merges = make.learn_merges(make.CORPUS, size - 514)
    letters = list(make.byte_symbols().values())
    symbols = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    symbols += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {symbol: index for index, symbol in enumerate(symbols)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2"] + [" ".join(pair) for pair in merges]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))


def save(model, folder, shard):
    model.save_pretrained(folder, safe_serialization=True, max_shard_size=shard)


def edit(path, **fields):
    values = json.loads(path.read_text())
    for field, value in fields.items():
        section, _, name = field.rpartition("__")
        (values[section] if section else values)[name] = value
    path.write_text(json.dumps(values, indent=2) + "\n")


def write_golden(folder, model, tokenizer, processor, length, seed):
    golden = {"texts": [], "images": []}
    # With the padding of a batch, as a processor makes it.
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=length, return_tensors="pt")
    features = model.get_text_features(**batch)
    for text, row in zip(TEXTS, features):
        ids = tokenizer(text, truncation=True, max_length=length)["input_ids"]
        golden["texts"].append({"text": text, "ids": ids, "bge": make.rounded(row)})
    for index, shape in enumerate([(50, 90), (13, 7), (61, 44)]):
        image = make.picture(*shape, seed=seed + index)
        image.save(folder / f"image{index}.png", optimize=True)
        pixels = processor(image, return_tensors="pt")["pixel_values"]
        golden["images"].append({"file": f"image{index}.png", "bge": make.rounded(model.get_image_features(pixels)[0])})
    (folder / "golden.json").write_text(json.dumps(golden))


@torch.no_grad()
def make_files():
    """Shards, float32, QuickGELU, a vocabulary and a merge list, and settings as files of 2021 have them."""
    folder = HERE / "hf-files"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    tokenizer = make_vocabulary(folder, 580)
    config = CLIPConfig(
        text_config=dict(vocab_size=580, hidden_size=96, intermediate_size=200, num_hidden_layers=3, num_attention_heads=4)
        | dict(max_position_embeddings=20, hidden_act="quick_gelu", eos_token_id=2, bos_token_id=0, pad_token_id=1),
        vision_config=dict(hidden_size=80, intermediate_size=240, num_hidden_layers=2, num_attention_heads=5, image_size=48)
        | dict(patch_size=12, hidden_act="quick_gelu", layer_norm_eps=1e-3),
        projection_dim=40,
    )
    model = CLIPModel(config).eval()
    randomise(model, 61)
    save(model, folder, "500KB")
    edit(folder / "config.json", text_config_dict=None, vision_config_dict=None)
    settings = dict(crop_size=48, do_center_crop=True, do_normalize=True, do_resize=True, resample=3, size=48)
    settings |= dict(feature_extractor_type="CLIPFeatureExtractor", image_mean=list(make.MEAN), image_std=list(make.STD))
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    write_golden(folder, model, tokenizer, CLIPImageProcessor.from_pretrained(folder), 20, 70)


@torch.no_grad()
def make_json():
    """One file, float16, the exact GELU, `tokenizer.json`, and settings as they are saved today."""
    folder = HERE / "hf-json"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    tokenizer = make_vocabulary(folder, 560)
    tokenizer.save_pretrained(folder)
    for name in ["vocab.json", "merges.txt"]:
        (folder / name).unlink()
    config = CLIPConfig(
        text_config=dict(vocab_size=560, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=2)
        | dict(max_position_embeddings=14, hidden_act="gelu", eos_token_id=559, bos_token_id=558, pad_token_id=559),
        vision_config=dict(hidden_size=144, intermediate_size=320, num_hidden_layers=3, num_attention_heads=3, image_size=36)
        | dict(patch_size=8, hidden_act="gelu"),
        projection_dim=56,
    )
    model = CLIPModel(config).eval()
    randomise(model, 83)
    model.half()
    save(model, folder, "1GB")
    model.float()
    processor = CLIPImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": 36, "width": 36}, image_mean=[0.5, 0.4, 0.45], image_std=[0.5, 0.25, 0.3]
    )
    processor.save_pretrained(folder)
    write_golden(folder, model, tokenizer, processor, 14, 90)


def make_preprocessing():
    """Settings that differ in each step, over images of several shapes; all make 36 x 36 pixels."""
    folder = HERE / "preprocessing"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    crop = dict(crop_size={"height": 36, "width": 36})
    cases = [
        crop | dict(size={"shortest_edge": 36}),
        crop | dict(size=36, resample=2),
        crop | dict(size={"shortest_edge": 20}),
        crop | dict(size={"height": 31, "width": 45}),
        crop | dict(do_resize=False),
        dict(do_center_crop=False, size={"height": 36, "width": 36}),
        crop | dict(size={"shortest_edge": 37}, do_rescale=False),
        crop | dict(size={"shortest_edge": 37}, do_normalize=False),
        crop | dict(size={"shortest_edge": 40}, rescale_factor=0.0078125, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.25, 1.5]),
    ]
    tensors = {}
    for index, shape in enumerate([(50, 90), (13, 7), (200, 36), (37, 36)]):
        image = make.picture(*shape, seed=130 + index)
        image.save(folder / f"image{index}.png", optimize=True)
        for number, settings in enumerate(cases):
            pixels = CLIPImageProcessor(**settings)(image, return_tensors="np")["pixel_values"][0]
            assert pixels.shape == (3, 36, 36)
            tensors[f"{number}.{index}"] = torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))
    (folder / "cases.json").write_text(json.dumps(cases, indent=1) + "\n")
    save_file(tensors, folder / "pixels.safetensors")


if __name__ == "__main__":
    torch.manual_seed(0)
    with rows_first():
        make_files()
        make_json()
        make_preprocessing()
