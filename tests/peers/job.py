#!/usr/bin/env python3
"""The whole interaction over the sample's queries: `thicket demo` against a round-by-round script on transformers.

The script does what the published code does: in every round it asks about every query that still has its own text, one
question a forward pass, describes the image of each query that is refined, and merges. Both have the same weights, prompts,
settings and queries. Similarities are given to the script, so that its time is that of the answers alone, while Thicket's
time is that of everything between the baseline and the ranking. Their metrics are compared before any time is printed.
"""

import json
import subprocess
import sys
import tempfile
import time
import tomllib

import numpy as np
import torch
from bench import ROOT, arguments, save
from PIL import Image

sys.path.insert(0, str(ROOT / "tests/golden/qwen"))
from make_adapters import base_model, processor_of  # noqa: E402

YES = ["Yes", "yes", "YES", " Yes", " yes", " YES"]
NO = ["No", "no", "NO", " No", " no", " NO"]
MAX_TOKENS = 1024
CLOSE = 0.3


def command(options, *arguments):
    run = subprocess.run([options.binaries / "thicket", *arguments], capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(run.stderr)
    return json.loads(run.stdout)


def vectors(options, flag, values):
    rows = []
    for start in range(0, len(values), 100):
        inputs = [part for value in values[start : start + 100] for part in (flag, str(value))]
        rows += command(options, "embed", "--model", options.embedding, *inputs, "--json")["vectors"]
    return np.array(rows, dtype=np.float32)


class Script:
    """The answer model as a script uses it: one prompt, one generation."""

    def __init__(self, folder):
        self.model, self.processor = base_model(folder), processor_of(folder)
        for config in (self.model.config, self.model.config.text_config):
            if config.video_token_id is None:
                config.video_token_id = -1
        prompts = tomllib.loads((folder / "prompts.toml").read_text())
        self.prompts = {name: table["template"].removesuffix("\n") for name, table in prompts.items()}
        ids = self.processor.tokenizer.convert_tokens_to_ids
        pieces = lambda words: [self.processor.tokenizer.tokenize(word) for word in words]  # noqa: E731
        self.yes, self.no = ([ids(p[0]) for p in pieces(words) if len(p) == 1] for words in (YES, NO))

    def generate(self, text, image=None, most=MAX_TOKENS):
        content = ([{"type": "image"}] if image else []) + [{"type": "text", "text": text}]
        prompt = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = self.processor(text=[prompt], images=[image] if image else None, return_tensors="pt")
        with torch.inference_mode():
            made = self.model.generate(
                **inputs, max_new_tokens=most, do_sample=False, output_scores=True, return_dict_in_generate=True
            )
        new = made.sequences[0, inputs["input_ids"].shape[1] :]
        return self.processor.tokenizer.decode(new, skip_special_tokens=True), made.scores[0][0]

    def fits(self, caption, image, threshold):
        # One token: the sample's model was not taught to end its turn after it.
        _, scores = self.generate(self.prompts["locate"].replace("{{ caption }}", caption), image, most=1)
        weights = torch.softmax(scores.double(), dim=0)
        yes, no = weights[self.yes].sum(), weights[self.no].sum()
        return bool(yes / (yes + no) > threshold)

    def merge(self, caption, image):
        answers = []
        text, _ = self.generate(self.prompts["describe"], image)
        for line in text.split("\n"):
            if ":" in line:
                continue
            parts = line.split(". ")
            sentence = parts[1].replace("Yes, ", "").replace("No, ", "") if len(parts) > 1 else ""
            sentence = sentence[:1].upper() + sentence[1:]
            answers.append(sentence if len(parts) < 2 or sentence.endswith(".") else sentence + ".")
        return self.generate(self.prompts["aggregate"].replace("{{ subtexts }}", str([caption, *answers])))[0]


def round_by_round(script, settings, captions, similarity, image):
    """The published loop. Returns each query's text and anchor, and the questions asked."""
    rounds, xi, threshold = settings["rounds"], np.float32(settings["xi"]), settings["yes_threshold"]
    candidates = np.argsort(-similarity, axis=1, kind="stable")[:, :rounds]
    best = similarity.max(axis=1)
    texts, anchors = list(captions), np.full(len(captions), -1)
    decisions = np.zeros((rounds, len(captions)), dtype=bool)
    questions = 0
    for number in range(rounds):
        asked = [query for query, text in enumerate(texts) if text == captions[query]]
        for query in asked:
            decisions[number, query] = script.fits(captions[query], image(candidates[query, number]), threshold)
        questions += len(asked)
        for query in asked:
            first = number == 0 and best[query] > xi
            later = number > 0 and best[query] <= xi and not decisions[:number, query].any()
            if decisions[number, query] and (first or later):
                anchors[query] = candidates[query, number]
                texts[query] = script.merge(captions[query], image(anchors[query]))
    return texts, anchors, questions


def metrics(options, similarity, query_ids, gallery_ids):
    with tempfile.TemporaryDirectory() as folder:
        arrays = {"similarity": similarity, "query-ids": query_ids, "gallery-ids": gallery_ids}
        flags = []
        for name, array in arrays.items():
            np.save(f"{folder}/{name}.npy", array)
            flags += [f"--{name}", f"{folder}/{name}.npy"]
        return command(options, "eval", *flags, "--json")


def main():
    parser = arguments(__doc__)
    parser.add_argument("--queries", type=int, default=150)
    options = parser.parse_args()
    options.embedding = ROOT / "models/sample-embedding"
    answer = ROOT / "models/sample-answer"
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        command(options, "synth", "--out", folder, "--split", "test", "--json")
        root = ROOT.__class__(folder) / "CUHK-PEDES"
        records = json.loads((root / "reid_raw.json").read_text())
        records = [record for record in records if record["split"] == "test"]
        paths = [root / "imgs" / record["file_path"] for record in records]
        gallery_ids = np.array([record["id"] for record in records])
        captions = [(caption, record["id"]) for record in records for caption in record["captions"]]
        picked = [captions[number * len(captions) // options.queries] for number in range(options.queries)]
        texts, query_ids = [text for text, _ in picked], np.array([identity for _, identity in picked])
        queries, gallery = vectors(options, "--text", texts), vectors(options, "--image", paths)
        similarity = queries @ gallery.T

        runs = {"thicket": [], "script": []}
        settings = json.loads((answer / "thi.json").read_text())
        script = Script(answer)
        script.fits(texts[0], Image.open(paths[0]).convert("RGB"), 0.5)
        for _ in range(options.rounds):
            ours = command(options, "demo", "--queries", str(options.queries), "--json", "--out", f"{folder}/demo")
            runs["thicket"].append(ours["seconds"]["thi"])
            start = time.perf_counter()
            merged, anchors, questions = round_by_round(
                script, settings, texts, similarity, lambda place: Image.open(paths[place]).convert("RGB")
            )
            runs["script"].append(time.perf_counter() - start)
        refined = vectors(options, "--text", merged) @ gallery.T
        for query, anchor in enumerate(anchors):
            if anchor >= 0:
                refined[query, anchor] = 1
            else:
                refined[query] = similarity[query]
        mixed = settings["lambda"] * similarity + (1 - settings["lambda"]) * refined
        theirs = metrics(options, mixed.astype(np.float32), query_ids, gallery_ids)
        plain = metrics(options, similarity, query_ids, gallery_ids)
        for name, mine, other in [("baseline", ours["baseline"], plain), ("thi", ours["thi"], theirs)]:
            wrong = {key: (mine[key], other[key]) for key in mine if abs(mine[key] - other[key]) > CLOSE}
            if wrong:
                raise SystemExit(f"the two sides disagree, nothing is timed: {name} {wrong}")
        if questions != ours["questions"]["round_by_round"]:
            print(f"questions: the script asked {questions}, {ours['questions']['round_by_round']} expected")
        ratios = sorted(script / own for script, own in zip(runs["script"], runs["thicket"]))
        print("times as fast as the script:", ratios)
        save(
            options.out,
            "job",
            {
                "queries": options.queries,
                "questions": {"thicket": ours["questions"]["asked"], "script": questions},
                "metrics": {"thicket": ours["thi"], "script": theirs},
                "seconds": runs,
                "times_as_fast_as_it": {"min": ratios[0], "median": ratios[len(ratios) // 2], "max": ratios[-1]},
            },
        )


if __name__ == "__main__":
    main()
