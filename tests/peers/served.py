#!/usr/bin/env python3
"""The demonstration with answers from `transformers serve` against the demonstration that computes them itself.

    python3 -m venv served && served/bin/pip install 'transformers[serving]==5.24.0' torch==2.15.0 torchvision==0.29.2
    served/bin/python tests/peers/served.py --transformers served/bin/transformers

Nothing is timed. The sample's model is copied into a folder that transformers loads, with the chat template of the published
models. The server gives no log-probabilities, so that a Yes is a first token that says so: the threshold is 0.5 on both sides.
Questions asked and every metric have to be equal.
"""

import argparse
import json
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "models/sample-answer"
TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] in ('image', 'image_url') %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def change(path, update):
    document = json.loads(path.read_text())
    update(document)
    path.write_text(json.dumps(document))


def make_served(folder):
    """The sample's model as transformers wants it."""
    shutil.copytree(SAMPLE, folder)
    # Newer releases take a whole number only.
    change(folder / "config.json", lambda c: c["vision_config"].update(mlp_ratio=int(c["vision_config"]["mlp_ratio"])))
    names = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor"}
    change(folder / "preprocessor_config.json", lambda c: c.update(names))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    tokenizer = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "chat_template": TEMPLATE}))


def wait_for(url, server, log):
    for _ in range(240):
        if server.poll() is not None:
            break
        try:
            return urllib.request.urlopen(f"{url}/models", timeout=5).read()
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise SystemExit(f"the server did not start:\n{log.read_text()[-2000:]}")


def demo(options, model, folder, *flags):
    command = [options.binaries / "thicket", "demo", "--queries", str(options.queries), "--json"]
    command += ["--answer-model", model, "--out", folder, *flags]
    run = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(run.stderr)
    document = json.loads(run.stdout)
    return {name: document[name] for name in ("queries", "gallery", "baseline", "thi", "questions")}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binaries", type=pathlib.Path, default=ROOT / "target/release", help="folder of the programs")
    parser.add_argument("--transformers", default="transformers", help="the program of that name")
    parser.add_argument("--queries", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        own, served, log = scratch / "own", scratch / "served", scratch / "log"
        shutil.copytree(SAMPLE, own)
        change(own / "thi.json", lambda settings: settings.update(yes_threshold=0.5))
        make_served(served)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = str(listener.getsockname()[1])
        command = [options.transformers, "serve", served, "--host", "127.0.0.1", "--port", port]
        command += ["--device", "cpu", "--dtype", "float32"]
        with log.open("w") as file:
            server = subprocess.Popen([str(part) for part in command], stdout=file, stderr=file)
        try:
            url = f"http://127.0.0.1:{port}/v1"
            wait_for(url, server, log)
            ours = demo(options, own, scratch / "a")
            theirs = demo(options, own, scratch / "b", "--answer-server", url)
        finally:
            server.terminate()
            server.wait(timeout=60)
    if ours != theirs:
        raise SystemExit(f"the two sides disagree:\n{json.dumps(ours)}\n{json.dumps(theirs)}")
    print(f"equal: {json.dumps(ours)}")


if __name__ == "__main__":
    main()
