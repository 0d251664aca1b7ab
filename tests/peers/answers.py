#!/usr/bin/env python3
"""The answer service against transformers and llama.cpp: the layer shapes of Qwen2-VL-2B, fewer of them, random weights.

Three things are timed, through gRPC on our side and in this process on the others:

- `prefill` and `prefill and decode`: a merged text from a prompt of some hundred tokens, of 1 and of 33 tokens, 1, 8 and 32
  different ones at a time (the first token alone is the time to the first token);
- `describe, first token` and `describe`: 1 and 33 tokens about 1, 8 and 32 images at a time, each seen for the first time;
- `locate`: is this the person? about 1, 8 and 32 images at a time, each seen for the first time;
- `second question`: another caption about an image that has been asked about, against the first.

Before anything is timed, the tokens and the probabilities of Yes of all sides are compared.
"""

import concurrent.futures
import copy
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib

import numpy as np
import torch
from bench import ROOT, UNTIMED, Service, arguments, compared, in_turn, own_types, save, stubs
from PIL import Image

sys.path.insert(0, str(ROOT / "tests/golden/qwen"))

CAPTION = "a a are are a helpful are a"
ANSWERS = ["a are helpful assistant a are " * 3] * 8
KINDS = ["locate", "describe", "aggregate"]
SHORT, LONG = 1, 33
# How far a probability of Yes may be from that of transformers in f32. The weights of Yes and No are blown up, and with them
# what bf16 rounds away.
CLOSE = {"f32": 2e-3, "bf16": 5e-2}
# How many texts must be those of transformers in f32. With random weights two words may be as likely as each other, and bf16
# rounds between them.
EQUAL = {"f32": 1.0, "bf16": 0.9}
SIDE = 224
LOUDER = 30


def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((SIDE, SIDE), Image.BICUBIC)


def encoded(image):
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def ahead(options, batch, fresh, form=lambda image: image):
    """Batches of new pictures for every call of one side, made before anything is timed: whoever asks has an image already, the
    service's callers as a file and the peer's in memory."""
    calls = options.rounds + UNTIMED
    return iter([[form(picture(next(fresh))) for _ in range(batch)] for _ in range(calls)])


def speak_up(folder):
    """Makes the rows of Yes and No in the tied table large: random ones give neither word any weight."""
    from full import WORDS
    from safetensors import safe_open
    from safetensors.torch import save_file

    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        table = tensors.get("model.embed_tokens.weight")
        if table is not None:
            table[[id for word, id in WORDS.items() if word.strip("Ġ").lower() in ("yes", "no")]] *= LOUDER
            save_file(tensors, path, metadata={"format": "pt"})


class Transformers:
    """A model of transformers in one type."""

    def __init__(self, model, processor, dtype, device):
        self.model, self.processor = model.to(device, dtype), processor
        # What a user of transformers gets; the goldens are made with the plain attention.
        self.model.set_attn_implementation("sdpa")
        self.dtype, self.device = dtype, device

    def inputs(self, texts, images=None):
        content = lambda text: ([{"type": "image"}] if images else []) + [{"type": "text", "text": text}]  # noqa: E731
        prompts = [
            self.processor.apply_chat_template([{"role": "user", "content": content(text)}], add_generation_prompt=True)
            for text in texts
        ]
        made = self.processor(text=prompts, images=images, return_tensors="pt", padding=True, padding_side="left")
        if images:
            made["pixel_values"] = made["pixel_values"].to(self.dtype)
        return made.to(self.device)

    def generate(self, inputs, tokens):
        with torch.inference_mode():
            return self.model.generate(
                **inputs,
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                do_sample=False,
                output_scores=True,
                return_dict_in_generate=True,
            )

    def p_yes(self, texts, images):
        ids = self.processor.tokenizer.convert_tokens_to_ids
        made = self.generate(self.inputs(texts, images), 1)
        weights = torch.softmax(made.scores[0].double(), dim=-1)
        yes = weights[:, [ids(word) for word in ("Yes", "yes", "YES", "ĠYes")]].sum(-1)
        no = weights[:, [ids(word) for word in ("No", "no")]].sum(-1)
        return (yes / (yes + no)).tolist()


def write_gguf(folder, path):
    """The language model as llama.cpp reads it, matrices in bf16 as they are stored; without a tokenizer."""
    import gguf
    from safetensors import safe_open

    config = json.loads((folder / "config.json").read_text())
    heads = config["num_attention_heads"]
    writer = gguf.GGUFWriter(path, "qwen2vl")
    writer.add_context_length(4096)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_sections([*config["rope_scaling"]["mrope_section"], 0])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():
                if not name.startswith("model."):
                    continue
                part = name.removeprefix("model.")
                if part.startswith("layers."):
                    _, layer, rest = part.split(".", 2)
                    module, kind = rest.rsplit(".", 1)
                    target = f"blk.{layer}.{names[module]}.{kind}"
                else:
                    target = {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}[part]
                tensor = tensors.get_tensor(name)
                if tensor.dim() == 1:
                    writer.add_tensor(target, tensor.float().numpy())
                else:
                    raw = tensor.to(torch.bfloat16).view(torch.uint16).numpy().view(np.uint8)
                    writer.add_tensor(target, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaCpp:
    def __init__(self, folder, path):
        from llama_cpp import Llama

        write_gguf(folder, path)
        self.model = Llama(path, n_ctx=1024, n_batch=1024, n_threads=2, n_threads_batch=2, verbose=False)

    def generate(self, prompt, tokens):
        self.model.reset()
        self.model.eval(prompt)
        made = []
        for number in range(tokens):
            made.append(int(np.argmax(self.model.scores[self.model.n_tokens - 1])))
            if number + 1 < tokens:
                self.model.eval(made[-1:])
        return made


def decoded(results, prefill, whole, name):
    """Adds what the tokens after the first took."""
    rest = lambda side: [  # noqa: E731
        long - short for long, short in zip(results[whole][side]["runs_s"], results[prefill][side]["runs_s"])
    ]
    sides = [side for side, row in results[prefill].items() if isinstance(row, dict)]
    results[name] = compared({side: rest(side) for side in sides}, "thicket", LONG - SHORT)


def printed(name, row):
    print(name, {side: part.get("times_as_fast_as_it") for side, part in row.items() if isinstance(part, dict)}, flush=True)


def generated(peer, inputs, tokens):
    made = peer.generate(inputs, tokens).sequences[:, inputs["input_ids"].shape[1] :]
    return peer.processor.batch_decode(made, skip_special_tokens=True)


def aggregate(options, services, peers, llama):
    """Texts merged, of 1 and of 33 tokens."""
    from thicket.v1 import answer_pb2

    results = {}
    for batch in options.batches:
        texts = [CAPTION + " a are"[: 2 * (number % 4)] + " helpful" * (number // 4) for number in range(batch)]
        requests = [answer_pb2.AggregateRequest(text=text, answers=ANSWERS) for text in texts]
        prompts = [options.aggregate.replace("{{ subtexts }}", str([text, *ANSWERS])) for text in texts]
        end = f", {batch} at a time" if batch > 1 else ""
        names = {SHORT: "prefill" + end, LONG: "prefill and decode" + end}
        with concurrent.futures.ThreadPoolExecutor(batch) as pool:
            for tokens, service in services.items():
                ours = lambda service=service: list(  # noqa: E731
                    pool.map(lambda request: service.stub.Aggregate(request, timeout=600).text, requests)
                )
                prepared = {name: peer.inputs(prompts) for name, peer in peers.items()}
                texts_here, peer = ours(), peers["transformers f32"]
                theirs = generated(peer, prepared["transformers f32"], tokens)
                equal = float(np.mean(np.equal(texts_here, theirs)))
                if equal < EQUAL[options.dtype]:
                    raise SystemExit(f"{tokens} tokens: {texts_here!r} here, {theirs!r} in transformers")
                sides = {"thicket": ours}
                for name, peer in peers.items():
                    sides[name] = lambda peer=peer, name=name, tokens=tokens: peer.generate(prepared[name], tokens)
                if llama:
                    alone = [peers["transformers f32"].inputs([prompt])["input_ids"][0].tolist() for prompt in prompts]
                    sides["llama.cpp bf16"] = lambda tokens=tokens: [llama.generate(ids, tokens) for ids in alone]
                length = prepared["transformers f32"]["input_ids"].shape[1]
                row = compared(in_turn(sides, options.rounds), "thicket", batch)
                results[names[tokens]] = {
                    "prompt tokens": length, "new tokens": tokens, "equal texts": equal, **row
                }
                printed(names[tokens], row)
        decoded(results, names[SHORT], names[LONG], "decode" + end)
    return results


def describe(options, services, peers, fresh):
    """Descriptions of images, of 1 and of 33 tokens."""
    from thicket.v1 import answer_pb2

    results = {}
    for batch in options.batches:
        end = f", {batch} at a time"
        names = {SHORT: "describe, first token" + end, LONG: "describe" + end}
        with concurrent.futures.ThreadPoolExecutor(batch) as pool:
            for tokens, service in services.items():
                ask = lambda image, service=service: service.stub.Describe(  # noqa: E731
                    answer_pb2.DescribeRequest(image=image), timeout=600
                )
                sample = [picture(next(fresh)) for _ in range(batch)]
                ours = [answer.raw_text for answer in pool.map(ask, map(encoded, sample))]
                peer = peers["transformers f32"]
                theirs = generated(peer, peer.inputs([options.describe] * batch, sample), tokens)
                equal = float(np.mean(np.equal(ours, theirs)))
                if equal < EQUAL[options.dtype]:
                    raise SystemExit(f"{tokens} tokens: {ours!r} here, {theirs!r} in transformers")
                files = ahead(options, batch, fresh, encoded)
                sides = {"thicket": lambda ask=ask, files=files: list(pool.map(ask, next(files)))}
                for name, peer in peers.items():
                    images = ahead(options, batch, fresh)
                    sides[name] = lambda peer=peer, tokens=tokens, images=images: peer.generate(
                        peer.inputs([options.describe] * batch, next(images)), tokens
                    )
                row = compared(in_turn(sides, options.rounds), "thicket", batch)
                results[names[tokens]] = {"new tokens": tokens, "equal texts": equal, **row}
                printed(names[tokens], row)
    return results


def locate(options, service, peers, fresh):
    """First questions about images, and a second one about each."""
    from thicket.v1 import answer_pb2

    results = {}
    ask = lambda image, text: service.stub.Locate(  # noqa: E731
        answer_pb2.LocateRequest(image=image, text=text), timeout=600
    )
    prompt = options.locate.replace("{{ caption }}", CAPTION)
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        for batch in options.batches:
            sample = [picture(next(fresh)) for _ in range(batch)]
            ours = [answer.p_yes for answer in pool.map(lambda image: ask(encoded(image), CAPTION), sample)]
            for name, peer in peers.items():
                theirs = peer.p_yes([prompt] * batch, sample)
                if peer.dtype == torch.float32 and not np.allclose(ours, theirs, rtol=0, atol=CLOSE[options.dtype]):
                    raise SystemExit(f"p(Yes) {ours} here, {theirs} in {name}")

            files = ahead(options, batch, fresh, encoded)
            sides = {
                "thicket": lambda files=files: list(pool.map(lambda image: ask(image, CAPTION), next(files)))
            }
            for name, peer in peers.items():
                images = ahead(options, batch, fresh)
                sides[name] = lambda peer=peer, batch=batch, images=images: peer.p_yes([prompt] * batch, next(images))
            seconds = in_turn(sides, options.rounds)
            results[f"locate, {batch} at a time"] = compared(seconds, "thicket", batch)
            printed(f"locate, {batch} at a time", results[f"locate, {batch} at a time"])
    firsts, seconds = [], []
    for _ in range(options.rounds):
        image = encoded(picture(next(fresh)))
        start = time.perf_counter()
        ask(image, CAPTION)
        middle = time.perf_counter()
        ask(image, CAPTION + " are")
        seconds.append(time.perf_counter() - middle)
        firsts.append(middle - start)
    results["second question"] = compared({"second": seconds, "first": firsts}, "second")
    print("second question", results["second question"]["first"]["times_as_fast_as_it"])
    return results


def main():
    parser = arguments(__doc__)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32], help="questions at a time")
    parser.add_argument("--kinds", choices=KINDS, nargs="+", default=KINDS, help="questions that are timed")
    parser.add_argument("--without-llama", action="store_true")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    parser.add_argument("--step-tokens", type=int, default=512, help="tokens of a step of the answer service")
    parser.add_argument("--dtype", choices=["bf16", "f32"], help="type of the answer service; the fastest here unless given")
    options = parser.parse_args()
    options.dtype = options.dtype or own_types(options.device)[0]
    torch.set_num_threads(os.cpu_count())
    stubs()
    from make_adapters import base_model, processor_of
    from thicket.v1 import answer_pb2_grpc

    with tempfile.TemporaryDirectory() as scratch:
        folder = ROOT.__class__(scratch) / "model"
        make = [sys.executable, ROOT / "tests/golden/qwen/full.py", folder]
        subprocess.run(
            [str(part) for part in [*make, "--layers", options.layers, "--blocks", options.blocks]], check=True
        )
        speak_up(folder)
        prompts = tomllib.loads((ROOT / "models/sample-answer/prompts.toml").read_text())
        options.locate, options.describe, options.aggregate = (
            prompts[name]["template"].removesuffix("\n") for name in KINDS
        )
        (folder / "prompts.toml").write_text((ROOT / "models/sample-answer/prompts.toml").read_text())
        model, processor = base_model(folder), processor_of(folder)
        peers = {f"transformers {name}": Transformers(copy.deepcopy(model), processor, dtype, options.device)
                 for name, dtype in [("f32", torch.float32), ("bf16", torch.bfloat16)]}
        del model
        llama = None if options.without_llama else LlamaCpp(folder, f"{scratch}/model.gguf")
        program = options.binaries / "thicket-answer"
        flags = ["--model", folder, "--prompts", folder / "prompts.toml", "--log", "warn"]
        flags += ["--step-tokens", options.step_tokens]
        flags += ["--device", options.device, "--dtype", options.dtype, "--max-output-tokens"]
        with Service(program, *flags, SHORT) as short, Service(program, *flags, LONG) as long:
            for service in (short, long):
                service.stub = answer_pb2_grpc.AnswerServiceStub(service.channel)
            results = {name: getattr(options, name) for name in ("layers", "blocks", "device", "dtype", "step_tokens")}
            services, fresh = {SHORT: short, LONG: long}, itertools.count()
            parts = {
                "aggregate": lambda: aggregate(options, services, peers, llama),
                "locate": lambda: locate(options, short, peers, fresh),
                "describe": lambda: describe(options, services, peers, fresh),
            }
            for kind in options.kinds:
                results |= parts[kind]()
                save(options.out, "answers", results)


if __name__ == "__main__":
    main()
