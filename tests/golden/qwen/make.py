#!/usr/bin/env python3
"""Makes the Qwen2-VL and Qwen2.5-VL fixtures: tiny random checkpoints and what the Python reference computes from them.

    python3 -m venv venv
    venv/bin/pip install torch==2.15.0 torchvision==0.29.2
    venv/bin/pip install transformers==4.57.6 tokenizers==0.22.2 safetensors==0.8.0 pillow==13.0.0 jinja2==3.1.6
    venv/bin/python make.py [FIXTURE ...]

Everything is drawn from fixed seeds. The script refuses to write goldens whose greedy choices are too close to call.
"""

import json
import pathlib
import shutil
import sys

import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2TokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

HERE = pathlib.Path(__file__).parent
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
# The pre-tokenization that the published tokenizer file describes.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
CORPUS = [
    "system\nYou are a helpful assistant.",
    "user\nDoes the person in the picture wear a red coat? Answer Yes or No.",
    "assistant\nYes",
    "assistant\nNo",
    "yes no Yes No YES NO what colour are the shoes of the person, and what does the person carry?",
    "The man has a blue bag; the woman wears a black skirt.\n\nDescribe the person.",
]
TEMPLATE = (
    "{% for turn in messages %}"
    "{% if loop.first and turn.role != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ turn.role }}\n"
    "{% if turn.content is string %}{{ turn.content }}{% else %}"
    "{% for part in turn.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}"
    "<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NEW_TOKENS = 64
SMALLEST_MARGIN = 2e-3


def draw(path, width, height, seed):
    """A figure on a gradient, with noise, so that the resampling has something to do."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.arange(width).view(1, -1, 1) / width
    y = torch.arange(height).view(-1, 1, 1) / height
    noise = torch.rand(height, width, 3, generator=generator)
    values = torch.cat([x.expand(height, -1, 1), y.expand(-1, width, 1), (x * y).expand(height, width, 1)], 2)
    image = Image.fromarray((255 * (0.7 * values + 0.3 * noise)).to(torch.uint8).numpy())
    pen = ImageDraw.Draw(image)
    pen.ellipse([width * 0.4, height * 0.08, width * 0.6, height * 0.25], fill=(224, 172, 105))
    pen.rectangle([width * 0.3, height * 0.25, width * 0.7, height * 0.6], fill=(200, 20, 30))
    pen.rectangle([width * 0.35, height * 0.6, width * 0.65, height * 0.95], fill=(20, 30, 90))
    image.save(path)


def make_tokenizer(folder, merged):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=256 + merged, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    return Qwen2TokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def randomize(model, seed, std):
    """Weights far from zero, so that every part shows in the outputs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = "norm" in name or "ln_q" in name
            parameter.copy_(1 + 0.2 * noise if is_norm and name.endswith("weight") else std * noise)


def build(text, vision, tokenizer, tied, seed, std, classes=(Qwen2VLConfig, Qwen2VLForConditionalGeneration)):
    token = tokenizer.convert_tokens_to_ids
    ids = {
        "image_token_id": token("<|image_pad|>"),
        "video_token_id": token("<|video_pad|>"),
        "vision_start_token_id": token("<|vision_start|>"),
        "vision_end_token_id": token("<|vision_end|>"),
    }
    common = {"bos_token_id": token("<|endoftext|>"), "eos_token_id": token("<|im_end|>"), **text}
    make_config, make_model = classes
    config = make_config(
        text_config={**common, "tie_word_embeddings": tied, **ids},
        vision_config=vision,
        tie_word_embeddings=tied,
        **ids,
    )
    config._attn_implementation = "eager"
    model = make_model(config).eval()
    randomize(model, seed, std)
    model.tie_weights()
    return model, {**common, **ids}


def published_names(state):
    """The names of the first published files, as opposed to those in memory."""
    def rename(name):
        return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")

    return {rename(name): tensor for name, tensor in state.items()}


def margin(scores):
    best = torch.stack([step[0] for step in scores]).topk(2).values
    return (best[:, 0] - best[:, 1]).min().item()


def run(model, processor, folder, cases):
    goldens, tensors = [], {}
    for index, (text, image_name) in enumerate(cases):
        image = Image.open(HERE / image_name).convert("RGB") if image_name else None
        content = ([{"type": "image"}] if image else []) + [{"type": "text", "text": text}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(text=[prompt], images=[image] if image else None, return_tensors="pt")
        grid = inputs.get("image_grid_thw")
        with torch.no_grad():
            positions, _ = model.model.get_rope_index(
                inputs["input_ids"], image_grid_thw=grid, attention_mask=inputs["attention_mask"]
            )
            logits = model(**inputs).logits[0]
            generated = model.generate(
                **inputs, max_new_tokens=NEW_TOKENS, do_sample=False, output_scores=True, return_dict_in_generate=True
            )
            if image:
                tensors[f"{index}.patches"] = inputs["pixel_values"].float()
                features = model.visual(inputs["pixel_values"], grid_thw=grid)
                tensors[f"{index}.features"] = features
        new = generated.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        assert margin(generated.scores) > SMALLEST_MARGIN, f"{folder.name} case {index}: {margin(generated.scores)}"
        assert len(new) == NEW_TOKENS and len(set(new)) > 5, f"{folder.name} case {index}: {new}"
        tensors[f"{index}.logits"] = logits
        goldens.append(
            {
                "text": text,
                "image": image_name,
                "grid": grid[0, 1:].tolist() if image else None,
                "tokens": inputs["input_ids"][0].tolist(),
                "positions": positions[:, 0].T.tolist(),
                "generated": new,
                "generated_text": processor.tokenizer.decode(new, skip_special_tokens=True),
            }
        )
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "goldens.safetensors")
    lines = ",\n".join(json.dumps(golden, ensure_ascii=False) for golden in goldens)
    (folder / "goldens.json").write_text(f"[\n{lines}\n]\n")


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def save_sharded(model, folder):
    """Two shards with an index, names as in memory."""
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    shards = [{}, {}]
    for name, tensor in state.items():
        shards["language_model" in name][name] = tensor
    names = [f"model-0000{n + 1}-of-00002.safetensors" for n in range(2)]
    for name, shard in zip(names, shards):
        save_file(shard, folder / name)
    weight_map = {tensor: name for name, shard in zip(names, shards) for tensor in shard}
    size = sum(tensor.numel() * 4 for tensor in state.values())
    write_json(
        folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map}
    )


def make_processor(tokenizer, **sizes):
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**sizes),
        chat_template=TEMPLATE,
    )


def tied(folder, seed=3):
    """Flat configuration, published names, one file, tied head, 14-pixel patches, bounds as min_pixels/max_pixels."""
    tokenizer = make_tokenizer(folder, merged=110)
    text = {
        "vocab_size": 389,
        "hidden_size": 48,
        "intermediate_size": 76,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 320,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
    }
    vision = {"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": 48}
    model, fields = build(text, vision, tokenizer, tied=True, seed=seed, std=0.25)
    state = published_names(model.state_dict())
    state.pop("lm_head.weight")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    write_json(
        folder / "config.json",
        {
            "architectures": ["Qwen2VLForConditionalGeneration"],
            "model_type": "qwen2_vl",
            **fields,
            "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
            "hidden_act": "silu",
            "use_sliding_window": False,
            "tie_word_embeddings": True,
            "vision_config": {**vision, "in_chans": 3, "spatial_patch_size": 14},
        },
    )
    bounds = {"min_pixels": 3136, "max_pixels": 28 * 28 * 13}
    write_json(
        folder / "preprocessor_config.json",
        {
            **bounds,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2VLProcessor",
        },
    )
    ends = [fields["eos_token_id"], fields["bos_token_id"]]
    model.generation_config.eos_token_id = ends
    write_json(
        folder / "generation_config.json", {"eos_token_id": ends, "do_sample": True, "temperature": 0.01}
    )
    run(
        model,
        make_processor(tokenizer, **bounds),
        folder,
        [
            ("Does the person wear a red coat?", "tall.png"),
            ("Describe the woman.", "small.png"),
            ("\n\nThe man's bag costs 1234 crowns, doesn't it? \u00e9te\u0301", None),
        ],
    )


def untied(folder, seed=4):
    """Nested configuration and names as current tools save them, two shards, untied head, 8-pixel patches in 3 x 3."""
    tokenizer = make_tokenizer(folder, merged=96)
    text = {
        "vocab_size": 371,
        "hidden_size": 60,
        "intermediate_size": 50,
        "num_hidden_layers": 2,
        "num_attention_heads": 5,
        "num_key_value_heads": 1,
        "max_position_embeddings": 300,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 1]},
    }
    vision = {
        "depth": 3,
        "embed_dim": 24,
        "num_heads": 3,
        "hidden_size": 60,
        "mlp_ratio": 3,
        "patch_size": 8,
        "temporal_patch_size": 1,
        "spatial_merge_size": 3,
    }
    model, _ = build(text, vision, tokenizer, tied=False, seed=seed, std=0.3)
    model.config.save_pretrained(folder)
    save_sharded(model, folder)
    sizes = {
        "min_pixels": 24 * 24 * 6,
        "max_pixels": 24 * 24 * 20,
        "patch_size": 8,
        "temporal_patch_size": 1,
        "merge_size": 3,
    }
    processor = make_processor(tokenizer, **sizes)
    processor.image_processor.save_pretrained(folder)
    run(
        model,
        processor,
        folder,
        [
            ("What does the person carry?", "small.png"),
            ("What colour are the shoes of the person? Answer Yes or No.", "tall.png"),
            ("Yes or No?", None),
        ],
    )


# The tower of Qwen2.5-VL has other fields and classes, the rest is as above.
CLASSES_2_5 = (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration)


def tied_2_5(folder, seed=6):
    """Flat configuration, published names, tied head, 14-pixel patches, windows of 2 x 2 merge blocks."""
    tokenizer = make_tokenizer(folder, merged=90)
    text = {
        "vocab_size": 365,
        "hidden_size": 72,
        "intermediate_size": 58,
        "num_hidden_layers": 2,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 300,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 2, 1]},
    }
    vision = {
        "depth": 3,
        "hidden_size": 36,
        "out_hidden_size": 72,
        "intermediate_size": 45,
        "num_heads": 3,
        "window_size": 56,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
    }
    model, fields = build(text, vision, tokenizer, tied=True, seed=seed, std=0.25, classes=CLASSES_2_5)
    state = published_names(model.state_dict())
    state.pop("lm_head.weight")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    write_json(
        folder / "config.json",
        {
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "model_type": "qwen2_5_vl",
            **fields,
            "rope_scaling": {"type": "mrope", "mrope_section": [1, 2, 1]},
            "hidden_act": "silu",
            "max_window_layers": 2,
            "sliding_window": 32768,
            "use_sliding_window": False,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "vision_config": {**vision, "hidden_act": "silu", "in_chans": 3, "spatial_patch_size": 14},
        },
    )
    bounds = {"min_pixels": 3136, "max_pixels": 28 * 28 * 24}
    write_json(
        folder / "preprocessor_config.json",
        {
            **bounds,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
        },
    )
    run(
        model,
        make_processor(tokenizer, **bounds),
        folder,
        [
            ("Does the person wear a blue skirt?", "tall.png"),
            ("What does the person carry?", "small.png"),
            ("Describe the man.", None),
        ],
    )


def untied_2_5(folder, seed=12):
    """Nested configuration, names in memory, two shards, untied head, 8-pixel patches in 3 x 3, windows of 3 x 3."""
    tokenizer = make_tokenizer(folder, merged=80)
    text = {
        "vocab_size": 347,
        "hidden_size": 84,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 7,
        "num_key_value_heads": 7,
        "max_position_embeddings": 300,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 2, 3]},
    }
    vision = {
        "depth": 4,
        "hidden_size": 20,
        "out_hidden_size": 84,
        "intermediate_size": 33,
        "num_heads": 5,
        "patch_size": 8,
        "temporal_patch_size": 1,
        "spatial_merge_size": 3,
        # 3 merge blocks of 24 pixels and some that do not count.
        "window_size": 80,
        "fullatt_block_indexes": [0, 3],
    }
    model, _ = build(text, vision, tokenizer, tied=False, seed=seed, std=0.25, classes=CLASSES_2_5)
    model.config.save_pretrained(folder)
    save_sharded(model, folder)
    sizes = {
        "min_pixels": 24 * 24 * 30,
        "max_pixels": 24 * 24 * 45,
        "patch_size": 8,
        "temporal_patch_size": 1,
        "merge_size": 3,
    }
    processor = make_processor(tokenizer, **sizes)
    processor.image_processor.save_pretrained(folder)
    run(
        model,
        processor,
        folder,
        [
            ("Describe the person.", "tall.png"),
            ("Does the woman wear a coat? Answer Yes or No.", "small.png"),
            ("Hello", None),
        ],
    )


FIXTURES = {"tied": tied, "untied": untied, "tied-2.5": tied_2_5, "untied-2.5": untied_2_5}


def main():
    draw(HERE / "tall.png", 97, 151, seed=3)
    draw(HERE / "small.png", 61, 37, seed=4)
    for name in sys.argv[1:] or FIXTURES:
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        FIXTURES[name](folder)
        for file in folder.iterdir():
            file.chmod(0o644)
        print(folder.name, sum(file.stat().st_size for file in folder.iterdir()), "bytes")


if __name__ == "__main__":
    main()
