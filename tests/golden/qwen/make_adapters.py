#!/usr/bin/env python3
"""Makes the LoRA fixtures: a random adapter for each checkpoint that make.py wrote, and what the reference computes.

    python3 -m venv venv
    venv/bin/pip install torch==2.15.0 torchvision==0.29.2 peft==0.21.2
    venv/bin/pip install transformers==4.57.6 tokenizers==0.22.2 safetensors==0.8.0 pillow==13.0.0 jinja2==3.1.6
    venv/bin/python make_adapters.py

Everything is drawn from fixed seeds. The reference merges with PEFT (`merge_and_unload`).
"""

import json
import shutil

import torch
from make import HERE, make_processor, run, write_json
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2TokenizerFast,
    Qwen2VLForConditionalGeneration,
)

CLASSES = {"qwen2_vl": Qwen2VLForConditionalGeneration, "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration}


def base_model(folder):
    config = AutoConfig.from_pretrained(folder)
    config._attn_implementation = "eager"
    config.vision_config._attn_implementation = "eager"
    # The reference forgets a saved placeholder that is not the published one.
    saved = json.loads((folder / "config.json").read_text())
    for field in ["image_token_id", "video_token_id", "vision_start_token_id"]:
        value = saved.get(field, saved.get("text_config", {}).get(field))
        setattr(config, field, value)
        setattr(config.text_config, field, value)
    model = CLASSES[config.model_type](config).float().eval()
    state = {}
    for file in sorted(folder.glob("model*.safetensors")):
        state.update(load_file(file))

    def in_memory(name):
        if name.startswith("visual."):
            return "model." + name
        if name.startswith("model.") and not name.startswith(("model.visual.", "model.language_model.")):
            return "model.language_model." + name.removeprefix("model.")
        return name

    state = {in_memory(name): tensor for name, tensor in state.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    generation = folder / "generation_config.json"
    if generation.exists():
        model.generation_config.eos_token_id = json.loads(generation.read_text())["eos_token_id"]
    return model


def processor_of(folder):
    tokenizer = Qwen2TokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    sizes = {
        name: settings[name]
        for name in ["min_pixels", "max_pixels", "patch_size", "temporal_patch_size", "merge_size"]
        if settings.get(name) is not None
    }
    return make_processor(tokenizer, **sizes)


def make(base, settings, seed, spelling, kept=(".logits",)):
    folder = HERE / f"{base}-adapter"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    model = get_peft_model(base_model(HERE / base), LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / "adapter_config.json").read_text())
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    write_json(folder / "adapter_config.json", {**config, "base_model_name_or_path": base})
    path = folder / "adapter_model.safetensors"
    save_file({spelling(name): tensor.contiguous() for name, tensor in load_file(path).items()}, path)
    cases = [(case["text"], case["image"]) for case in json.loads((HERE / base / "goldens.json").read_text())]
    run(model.merge_and_unload(), processor_of(HERE / base), folder, cases)
    # What the adapter leaves alone stands beside the base.
    goldens = load_file(folder / "goldens.safetensors")
    goldens = {name: tensor for name, tensor in goldens.items() if name.endswith(kept)}
    save_file(goldens, folder / "goldens.safetensors")
    for file in folder.iterdir():
        file.chmod(0o644)
    print(folder.name, sum(file.stat().st_size for file in folder.iterdir()), "bytes")


def main():
    make(
        "tied",
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["q_proj", "v_proj", "down_proj"],
            "rank_pattern": {"layers.0.self_attn.q_proj": 2},
            "alpha_pattern": {"layers.1.mlp.down_proj": 3},
        },
        seed=7,
        spelling=lambda name: name.replace("model.language_model.", "model."),
    )
    make(
        "untied",
        {
            "r": 3,
            "lora_alpha": 6,
            "use_rslora": True,
            "target_modules": r"^(?!.*visual).*(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)$",
        },
        seed=5,
        spelling=lambda name: name,
    )
    make(
        "tied-2.5",
        {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "o_proj", "up_proj", "qkv"]},
        seed=9,
        spelling=lambda name: name.replace("model.language_model.", "model.").replace("model.visual.", "visual."),
        kept=(".logits", ".features"),
    )


if __name__ == "__main__":
    main()
