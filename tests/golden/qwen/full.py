#!/usr/bin/env python3
"""Writes a random model folder in the full shape of a published one and, on demand, compares answers about it.

    python3 -m venv venv
    venv/bin/pip install torch==2.15.0 torchvision==0.29.2
    venv/bin/pip install transformers==4.57.6 tokenizers==0.22.2 safetensors==0.8.0 pillow==13.0.0 jinja2==3.1.6
    venv/bin/python full.py FOLDER                                   # Qwen2-VL, 2B: 4.4 GB
    venv/bin/python full.py FOLDER --shape qwen2-vl-7b               # 16.6 GB
    venv/bin/python full.py FOLDER --shape qwen2.5-vl-3b             # 7.5 GB
    venv/bin/python full.py FOLDER --layers 4 --blocks 4 --compare target/release/thicket

The weights are bf16 in shards with an index, under the published names, and depend on the seed and their own names
only: a folder with fewer layers holds the first ones of the whole. They are written as they are drawn, so that the
script never holds more than a few megabytes of them; only `--compare` loads the model, in f32.

The tokenizer has the published number of entries with the published ids for the special tokens, the single bytes and
the words of the chat template, and made-up entries elsewhere.
"""

import argparse
import json
import pathlib
import struct
import subprocess
import sys
import zlib

import torch

BF16_BYTES = 2
VALUES_PER_DRAW = 1 << 22
VOCABULARY = 151_643
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
# Words with their published ids; a space is written as the byte-level alphabet spells it.
WORDS = {
    "Ġa": 264,
    "Ġare": 525,
    "user": 872,
    "no": 2152,
    "You": 2610,
    "No": 2753,
    "ĠYes": 7414,
    "system": 8948,
    "Yes": 9454,
    "yes": 9693,
    "Ġhelpful": 10950,
    "YES": 14004,
    "Ġassistant": 17847,
    "assistant": 77091,
}
OPENING = "system\nYou are a helpful assistant."
OPENING_IDS = [8948, 198, 2610, 525, 264, 10950, 17847, 13]

SHAPES = {
    "qwen2-vl-2b": {
        "model_type": "qwen2_vl",
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
        "vision_config": {
            "depth": 32,
            "embed_dim": 1280,
            "mlp_ratio": 4,
            "num_heads": 16,
            "in_chans": 3,
            "hidden_size": 1536,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        },
    },
    "qwen2.5-vl-3b": {
        "model_type": "qwen2_5_vl",
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128000,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
        "vision_config": {
            "depth": 32,
            "hidden_act": "silu",
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "in_chans": 3,
            "out_hidden_size": 2048,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
    },
}
LARGE = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
}


def with_large(base, width_field):
    return {**SHAPES[base], **LARGE, "vision_config": {**SHAPES[base]["vision_config"], width_field: 3584}}


SHAPES["qwen2-vl-7b"] = with_large("qwen2-vl-2b", "hidden_size")
SHAPES["qwen2.5-vl-7b"] = with_large("qwen2.5-vl-3b", "out_hidden_size")


def configuration(shape, layers, blocks):
    """A published config.json, with fewer layers where asked for."""
    config = {
        "architectures": [
            "Qwen2VLForConditionalGeneration"
            if SHAPES[shape]["model_type"] == "qwen2_vl"
            else "Qwen2_5_VLForConditionalGeneration"
        ],
        **SHAPES[shape],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "vision_token_id": 151654,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_window_layers": SHAPES[shape]["num_hidden_layers"],
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "use_sliding_window": False,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    }
    vision = dict(config["vision_config"])
    if layers is not None:
        config["num_hidden_layers"] = config["max_window_layers"] = layers
    if blocks is not None:
        vision["depth"] = blocks
        if "fullatt_block_indexes" in vision:
            kept = [index for index in vision["fullatt_block_indexes"] if index < blocks]
            vision["fullatt_block_indexes"] = kept or [blocks - 1]
    return {**config, "vision_config": vision}


def linear(name, output, input_, bias):
    yield f"{name}.weight", (output, input_)
    if bias:
        yield f"{name}.bias", (output,)


def norm(name, width, bias):
    yield f"{name}.weight", (width,)
    if bias:
        yield f"{name}.bias", (width,)


def vision_tensors(config):
    vision = config["vision_config"]
    windowed = config["model_type"] == "qwen2_5_vl"
    width = vision["hidden_size" if windowed else "embed_dim"]
    side = vision["patch_size"]
    yield "visual.patch_embed.proj.weight", (width, 3, vision["temporal_patch_size"], side, side)
    for index in range(vision["depth"]):
        block = f"visual.blocks.{index}"
        yield from norm(f"{block}.norm1", width, bias=not windowed)
        yield from norm(f"{block}.norm2", width, bias=not windowed)
        yield from linear(f"{block}.attn.qkv", 3 * width, width, bias=True)
        yield from linear(f"{block}.attn.proj", width, width, bias=True)
        if windowed:
            inner = vision["intermediate_size"]
            yield from linear(f"{block}.mlp.gate_proj", inner, width, bias=True)
            yield from linear(f"{block}.mlp.up_proj", inner, width, bias=True)
            yield from linear(f"{block}.mlp.down_proj", width, inner, bias=True)
        else:
            inner = width * vision["mlp_ratio"]
            yield from linear(f"{block}.mlp.fc1", inner, width, bias=True)
            yield from linear(f"{block}.mlp.fc2", width, inner, bias=True)
    joined = width * vision["spatial_merge_size"] ** 2
    yield from norm("visual.merger.ln_q", width, bias=not windowed)
    yield from linear("visual.merger.mlp.0", joined, joined, bias=True)
    yield from linear("visual.merger.mlp.2", config["hidden_size"], joined, bias=True)


def language_tensors(config):
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    kv = config["num_key_value_heads"] * hidden // config["num_attention_heads"]
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        yield from norm(f"{layer}.input_layernorm", hidden, bias=False)
        yield from norm(f"{layer}.post_attention_layernorm", hidden, bias=False)
        yield from linear(f"{layer}.self_attn.q_proj", hidden, hidden, bias=True)
        yield from linear(f"{layer}.self_attn.k_proj", kv, hidden, bias=True)
        yield from linear(f"{layer}.self_attn.v_proj", kv, hidden, bias=True)
        yield from linear(f"{layer}.self_attn.o_proj", hidden, hidden, bias=False)
        yield from linear(f"{layer}.mlp.gate_proj", inner, hidden, bias=False)
        yield from linear(f"{layer}.mlp.up_proj", inner, hidden, bias=False)
        yield from linear(f"{layer}.mlp.down_proj", hidden, inner, bias=False)
    yield from norm("model.norm", hidden, bias=False)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], hidden)


def elements(shape):
    return int(torch.Size(shape).numel())


def draws(name, shape, seed):
    """The values of one tensor in bf16, a few at a time."""
    generator = torch.Generator().manual_seed(seed << 32 | zlib.crc32(name.encode()))
    is_norm = ("norm" in name or "ln_q" in name) and name.endswith("weight")
    mean, deviation = (1.0, 0.1) if is_norm else (0.0, 0.02)
    left = elements(shape)
    while left:
        count = min(left, VALUES_PER_DRAW)
        yield torch.empty(count).normal_(mean, deviation, generator=generator).bfloat16()
        left -= count


def in_shards(tensors, limit):
    shards, used = [[]], 0
    for name, shape in tensors:
        size = BF16_BYTES * elements(shape)
        if shards[-1] and used + size > limit:
            shards.append([])
            used = 0
        shards[-1].append((name, shape))
        used += size
    return shards


def write_shard(path, tensors, seed):
    """A safetensors file: the length of the header, the header, the values."""
    header, start = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors:
        end = start + BF16_BYTES * elements(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for name, shape in tensors:
            for values in draws(name, shape, seed):
                file.write(values.view(torch.uint8).numpy().tobytes())
    return start


def write_weights(folder, config, seed, shard_bytes):
    shards = in_shards([*vision_tensors(config), *language_tensors(config)], shard_bytes)
    weight_map, total = {}, 0
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        total += write_shard(folder / name, tensors, seed)
        weight_map |= {tensor: name for tensor, _ in tensors}
        print(f"{name}: {len(tensors)} tensors", flush=True)
    write_json(
        folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
    )
    print(f"{total:,} bytes of weights, {total // BF16_BYTES:,} parameters")


def byte_alphabet():
    """The 256 byte symbols in the order of their ids."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(256 - len(printable))]


def merges():
    """Pairs that are joined, first those that spell the template's words, then runs of two to four letters."""
    seen = set()

    def joined(left, right):
        if left + right in seen:
            return []
        seen.add(left + right)
        return [(left, right)]

    # A space goes to the word behind it before anything else happens to the word.
    for word in sorted(WORDS, key=lambda word: (not word.startswith("Ġ"), word)):
        for end in range(1, len(word)):
            yield from joined(word[:end], word[end])
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    runs = letters
    while True:
        longer = []
        for run in runs:
            for letter in letters:
                yield from joined(run, letter)
                longer.append(run + letter)
        runs = longer


def write_tokenizer(folder):
    bytes_ = byte_alphabet()
    taken = set(WORDS.values())
    free = (number for number in range(len(bytes_), VOCABULARY) if number not in taken)
    vocabulary = {symbol: number for number, symbol in enumerate(bytes_)} | WORDS
    pairs = []
    for left, right in merges():
        if left + right not in vocabulary:
            number = next(free, None)
            if number is None:
                break
            vocabulary[left + right] = number
        pairs.append([left, right])
    assert len(vocabulary) == VOCABULARY, len(vocabulary)
    added = [
        {
            "id": VOCABULARY + index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for index, token in enumerate(SPECIAL)
    ]
    split = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    write_json(
        folder / "tokenizer.json",
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False},
                    byte_level,
                ],
            },
            "post_processor": byte_level,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": "",
                "end_of_word_suffix": "",
                "fuse_unk": False,
                "byte_fallback": False,
                "vocab": vocabulary,
                "merges": pairs,
            },
        },
        indent=None,
    )
    check_tokenizer(folder / "tokenizer.json")


def check_tokenizer(path):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    for index, token in enumerate(SPECIAL):
        assert tokenizer.token_to_id(token) == VOCABULARY + index, token
    for word, number in WORDS.items():
        ids = tokenizer.encode(word.replace("Ġ", " ")).ids
        assert ids == [number], (word, ids)
    assert tokenizer.encode(OPENING).ids == OPENING_IDS, tokenizer.encode(OPENING).ids


def write_json(path, value, indent=1):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=indent) + "\n")


def write_folder(folder, shape, seed, layers, blocks, shard_bytes):
    folder.mkdir(parents=True, exist_ok=True)
    config = configuration(shape, layers, blocks)
    write_json(folder / "config.json", config)
    write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": 151643,
            "do_sample": True,
            "eos_token_id": [151645, 151643],
            "pad_token_id": 151643,
            "repetition_penalty": 1.0,
            "temperature": 0.01,
            "top_k": 1,
            "top_p": 0.001,
        },
    )
    write_json(
        folder / "preprocessor_config.json",
        {
            "min_pixels": 3136,
            "max_pixels": 12845056,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2VLProcessor",
        },
    )
    write_tokenizer(folder)
    write_weights(folder, config, seed, shard_bytes)


def reference(folder, image_path, prompt, tokens):
    """Greedy tokens of the reference in f32, with the distance between the best two logits of every step."""
    from make import make_processor
    from PIL import Image
    from transformers import AutoModelForImageTextToText, Qwen2TokenizerFast

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    tokenizer = Qwen2TokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    processor = make_processor(tokenizer, min_pixels=settings["min_pixels"], max_pixels=settings["max_pixels"])
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(text=[text], images=[Image.open(image_path).convert("RGB")], return_tensors="pt")
    with torch.no_grad():
        generated = model.eval().generate(
            **inputs,
            max_new_tokens=tokens,
            do_sample=False,
            temperature=None,
            top_k=None,
            top_p=None,
            output_logits=True,
            return_dict_in_generate=True,
        )
    best = torch.stack([step[0] for step in generated.logits]).topk(2).values
    count = inputs["input_ids"].shape[1]
    return generated.sequences[0, count:].tolist(), (best[:, 0] - best[:, 1]).tolist(), count


def compare(folder, binary, image_path, prompt, tokens):
    """Whether the binary's tokens equal the reference's up to a step that is too close to call."""
    command = [binary, "ask", "--model", folder, "--image", image_path, "--prompt", prompt, "--dtype", "f32"]
    done = subprocess.run([*command, "--max-tokens", str(tokens), "--json"], check=True, stdout=subprocess.PIPE)
    answered = json.loads(done.stdout)["tokens"]
    expected, margins, prompt_tokens = reference(folder, image_path, prompt, tokens)
    print(f"{prompt_tokens} prompt tokens, smallest margin {min(margins):.5f}")
    for step, (own, wanted) in enumerate(zip(answered, expected)):
        if own != wanted:
            print(f"token {step} is {own}, the reference has {wanted} with a margin of {margins[step]:.5f}")
            return margins[step] <= 1e-3
    print(f"{len(answered)} of {len(expected)} tokens, all equal, {len(set(expected))} different ones")
    # Of two answers that agree, one may still be longer.
    return len(answered) >= len([token for token in expected if token not in (151643, 151645)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path, help="where the model goes; files of the same names are replaced")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen2-vl-2b")
    parser.add_argument("--layers", type=int, help="decoder layers, instead of the published number")
    parser.add_argument("--blocks", type=int, help="blocks of the vision tower, instead of the published number")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shard-mb", type=int, default=2000, help="most megabytes of a shard")
    parser.add_argument("--compare", metavar="BINARY", help="compare the answer of this thicket with the reference")
    parser.add_argument("--tokens", type=int, default=64, help="tokens that are compared")
    parser.add_argument("--image", type=pathlib.Path, default=pathlib.Path(__file__).parent / "tall.png")
    parser.add_argument("--prompt", default="Does the person wear a red coat?")
    options = parser.parse_args()
    write_folder(
        options.folder, options.shape, options.seed, options.layers, options.blocks, options.shard_mb * 1_000_000
    )
    if options.compare and not compare(
        options.folder, options.compare, options.image, options.prompt, options.tokens
    ):
        sys.exit("the answers differ")


if __name__ == "__main__":
    main()
