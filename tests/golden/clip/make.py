"""Makes the goldens of thicket-imaging and thicket-clip. See README.md beside this file.

Usage: python make.py PATH_TO/bpe_simple_vocab_16e6.txt [part ...]
Parts: models variants hostile tokenizer resize smart_resize decode
"""

import html
import io
import json
import math
import struct
import sys
import zlib
from collections import Counter, OrderedDict
from pathlib import Path

import ftfy
import numpy as np
import regex
import torch
import yaml
from PIL import Image
from torch import nn

HERE = Path(__file__).resolve().parent
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


# --- tokeniser ---------------------------------------------------------------------------------------------------


def byte_symbols():
    """The printable stand-in of each byte, in id order."""
    plain = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    rest = [byte for byte in range(256) if byte not in plain]
    table = {byte: chr(byte) for byte in plain}
    table |= {byte: chr(256 + index) for index, byte in enumerate(rest)}
    return table


class Tokenizer:
    def __init__(self, merges, published):
        self.bytes = byte_symbols()
        letters = list(self.bytes.values())
        symbols = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
        self.ids = {symbol: index for index, symbol in enumerate(symbols)}
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.start, self.end = len(symbols), len(symbols) + 1
        self.size = len(symbols) + 2
        self.special = {"<|startoftext|>": self.start, "<|endoftext|>": self.end}
        self.split_again = {}
        if published:
            # The last merge gives its place to the mask; the word it made is left in the two pieces before it.
            self.special["<|mask|>"] = self.ids["".join(merges[-1])]
            self.split_again = {"".join(merges[-1]): merges[-1]}
        self.words = regex.compile(
            r"<\|startoftext\|>|<\|mask\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
            regex.IGNORECASE,
        )

    @staticmethod
    def clean(text):
        text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
        return regex.sub(r"\s+", " ", text).strip().lower()

    def word(self, text):
        if text in self.special:
            return [self.special[text]]
        symbols = [self.bytes[byte] for byte in text.encode("utf-8")]
        symbols[-1] += "</w>"
        while len(symbols) > 1:
            pairs = {pair: self.ranks[pair] for pair in zip(symbols, symbols[1:]) if pair in self.ranks}
            if not pairs:
                break
            best = min(pairs, key=pairs.get)
            merged, index = [], 0
            while index < len(symbols):
                if tuple(symbols[index : index + 2]) == best:
                    merged.append("".join(best))
                    index += 2
                else:
                    merged.append(symbols[index])
                    index += 1
            symbols = merged
        return [self.ids[piece] for symbol in symbols for piece in self.split_again.get(symbol, [symbol])]

    def tokens(self, text):
        return [token for word in self.words.findall(self.clean(text)) for token in self.word(word)]

    def encode(self, text, length):
        ids = [self.start] + self.tokens(text) + [self.end]
        if len(ids) > length:
            ids = ids[: length - 1] + [self.end]
        return ids + [0] * (length - len(ids))


def read_merges(path, count):
    lines = Path(path).read_text(encoding="utf-8").split("\n")[1 : 1 + count]
    return [tuple(line.split()) for line in lines]


def learn_merges(text, count):
    """Byte-pair merges of a small corpus, most frequent first."""
    table = byte_symbols()
    corpus = Counter()
    for word in regex.findall(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", text.lower()):
        symbols = [table[byte] for byte in word.encode("utf-8")]
        symbols[-1] += "</w>"
        corpus[tuple(symbols)] += 1
    merges = []
    while len(merges) < count:
        pairs = Counter()
        for symbols, times in corpus.items():
            for pair in zip(symbols, symbols[1:]):
                pairs[pair] += times
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        merged_corpus = Counter()
        for symbols, times in corpus.items():
            out, index = [], 0
            while index < len(symbols):
                if symbols[index : index + 2] == best:
                    out.append("".join(best))
                    index += 2
                else:
                    out.append(symbols[index])
                    index += 1
            merged_corpus[tuple(out)] += times
        corpus = merged_corpus
    return merges


# --- the two-tower model -----------------------------------------------------------------------------------------


class QuickGelu(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, width // 64, batch_first=True)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(width, 4 * width), gelu=QuickGelu(), c_proj=nn.Linear(4 * width, width))
        )
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x, mask):
        normal = self.ln_1(x)
        mixed, weights = self.attn(normal, normal, normal, attn_mask=mask, need_weights=True)
        x = x + mixed
        return x + self.mlp(self.ln_2(x)), weights


class Transformer(nn.Module):
    def __init__(self, width, layers):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width) for _ in range(layers))

    def forward(self, x, mask=None):
        for block in self.resblocks:
            x, weights = block(x, mask)
        return x, weights


class Vision(nn.Module):
    def __init__(self, size):
        super().__init__()
        width, patch, stride = size["vision_width"], size["patch"], size["stride"]
        rows, columns = ((side - patch) // stride + 1 for side in size["image"])
        self.conv1 = nn.Conv2d(3, width, patch, stride=stride, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(1 + rows * columns, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, size["vision_layers"])
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, size["embed"]))

    def forward(self, pixels):
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(pixels), 1, -1)
        x = torch.cat([first, patches], 1) + self.positional_embedding
        x, weights = self.transformer(self.ln_pre(x))
        return self.ln_post(x) @ self.proj, weights


class Base(nn.Module):
    def __init__(self, size):
        super().__init__()
        width = size["text_width"]
        self.visual = Vision(size)
        self.transformer = Transformer(width, size["text_layers"])
        self.token_embedding = nn.Embedding(size["vocab"], width)
        self.positional_embedding = nn.Parameter(torch.empty(size["text_length"], width))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, size["embed"]))

    def text(self, ids):
        length = ids.shape[1]
        mask = torch.full((length, length), -math.inf).triu(1)
        x, weights = self.transformer(self.token_embedding(ids) + self.positional_embedding, mask)
        return self.ln_final(x) @ self.text_projection, weights


class Perceptron(nn.Module):
    def __init__(self, size):
        super().__init__()
        sizes = [size["embed"], size["tse_hidden"], size["tse"]]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:]))
        self.bns = nn.ModuleList(nn.BatchNorm1d(width) for width in sizes[1:])

    def forward(self, x):
        shape = x.shape[:-1]
        hidden = torch.relu(self.bns[0](self.layers[0](x.flatten(0, 1))))
        return self.layers[1](hidden).unflatten(0, shape)


class ImageSelection(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.ratio = size["ratio"]
        self.linear = nn.Linear(size["embed"], size["tse"])
        self.fc = nn.Linear(size["embed"], size["tse"])
        self.mlp = Perceptron(size)

    def forward(self, tokens, attention):
        weights = attention[:, 0].clone()
        weights[:, 0] = -1
        chosen = weights.topk(int((tokens.shape[1] - 1) * self.ratio), dim=1).indices
        x = torch.gather(tokens, 1, chosen.unsqueeze(-1).expand(-1, -1, tokens.shape[2]))
        x = x / (x.norm(dim=-1, keepdim=True) + 1e-8)
        return (self.fc(x) + self.mlp(x)).amax(1)


class TextSelection(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.ratio = size["ratio"]
        self.linear = nn.Linear(size["embed"], size["tse"])
        self.mlp = Perceptron(size)

    def forward(self, tokens, ids, attention):
        rows = torch.arange(len(ids))
        ends = ids.argmax(1)
        mask = (ids != 0).int()
        lengths = mask.sum(1) - 2
        weights = attention[rows, ends].clone()
        weights[rows, ends] = -1
        weights[:, 0] = -1
        chosen = (weights * mask).topk(int((ids.shape[1] - 2) * self.ratio), dim=1).indices
        x = torch.gather(tokens, 1, chosen.unsqueeze(-1).expand(-1, -1, tokens.shape[2]))
        x = x / (x.norm(dim=-1, keepdim=True) + 1e-8)
        y = self.linear(x) + self.mlp(x)
        return torch.stack([row[: min(int(length), len(row))].amax(0) for row, length in zip(y, lengths)])


class Model(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.base_model = Base(size)
        self.selects = "tse" in size
        if self.selects:
            self.visul_emb_layer = ImageSelection(size)
            self.texual_emb_layer = TextSelection(size)
        if "people" in size:
            self.add_training_heads(size)

    def add_training_heads(self, size):
        """What IRRA trains beside the towers and no embedding needs."""
        width = size["embed"]
        self.classifier = nn.Linear(width, size["people"])
        self.cross_attn = nn.MultiheadAttention(width, 1, batch_first=True)
        self.cross_modal_transformer = Transformer(64, 1)
        self.ln_pre_t, self.ln_pre_i, self.ln_post = (nn.LayerNorm(width) for _ in range(3))
        self.mlm_head = nn.Sequential(
            OrderedDict(dense=nn.Linear(width, width), gelu=QuickGelu(), ln=nn.LayerNorm(width), fc=nn.Linear(width, size["vocab"]))
        )

    def image(self, pixels):
        tokens, attention = self.base_model.visual(pixels)
        return tokens, tokens[:, 0], self.visul_emb_layer(tokens, attention) if self.selects else None

    def text(self, ids):
        tokens, attention = self.base_model.text(ids)
        bge = tokens[torch.arange(len(ids)), ids.argmax(1)]
        return bge, self.texual_emb_layer(tokens, ids, attention) if self.selects else None


def randomise(model, seed):
    """Weights at the scale of a trained model, so that attention is neither flat nor a single spike."""
    generator = torch.Generator().manual_seed(seed)

    def noise(tensor, scale):
        return torch.randn(tensor.shape, generator=generator) * scale

    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                continue
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif ".ln_" in name or ".bns." in name:
                tensor.copy_(noise(tensor, 0.2) + (1.0 if name.endswith("weight") else 0.0))
            elif name.endswith("bias"):
                tensor.copy_(noise(tensor, 0.1))
            elif "embedding" in name:
                tensor.copy_(noise(tensor, 0.5))
            else:
                fan_in = tensor.shape[0] if name.endswith("proj") or name.endswith("projection") else tensor[0].numel()
                tensor.copy_(noise(tensor, 1.6 / math.sqrt(fan_in)))


def half_as_published(name):
    """Which tensors of a published checkpoint are float16."""
    keep = (".ln_", ".bns.", "token_embedding", "positional_embedding", "class_embedding")
    return not any(part in name for part in keep)


def resized(image, size, filter):
    """Rows, then columns, as every Pillow before 13 resizes: those versions prepared the images of the published models.
    Pillow 13 takes the columns first where the height loses more than twice as many pixels as the width."""
    return image.resize((size[0], image.height), filter).resize(size, filter)


def picture(width, height, seed):
    """Smooth colour with some noise on it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    phase = rng.uniform(0, 6, 3)
    waves = [np.sin(x / (3 + channel) + phase[channel]) + np.cos(y / (4 + channel)) for channel in range(3)]
    colour = 127 + 50 * np.stack(waves, -1) + rng.normal(0, 18, (height, width, 3))
    return Image.fromarray(colour.clip(0, 255).astype(np.uint8))


CORPUS = """a woman with long black hair wears a white shirt and blue jeans and carries a red backpack
a man in a dark jacket and grey trousers walks with a brown bag in his right hand
the person wears glasses a green scarf a striped sweater black shoes and a pink hat
she has short hair and a yellow dress with white sneakers he is riding a bike"""

TEXTS = [
    "a woman with long black hair",
    "A man in a dark jacket, grey trousers; he walks with a brown bag in his right hand and wears glasses and a hat.",
    "red",
    "wow !a! she is riding a !!bike",
    "caf\u00e9 \U0001f600 \u05d0\u05d3\u05dd \u4eba",
    "x1 y22 &amp; it's",
]


def make_model(name, size, published, seed, stored=None, prefix=None):
    """`published`: an archive of `torch.save`, else safetensors. `stored`: the type of all weights, else as published
    or float16."""
    prefix = ("module." if published else "") if prefix is None else prefix
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    merges = learn_merges(CORPUS, size["vocab"] - 514)
    extra = [("z", "q</w>")] if published else []
    lines = ["#version: 0.2"] + [" ".join(pair) for pair in merges + extra]
    (folder / "bpe_simple_vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = Tokenizer(merges, published=False)
    assert tokenizer.size == size["vocab"]

    model = Model(size).eval()
    randomise(model, seed)
    options = {"text_length": size["text_length"], "stride_size": size["stride"]}
    if "ratio" in size:
        options["select_ratio"] = size["ratio"]
    if published:
        state = OrderedDict(
            (prefix + key, as_stored(key, value, stored)) for key, value in model.state_dict().items()
        )
        state._metadata = OrderedDict([("", {"version": 1})])
        toy = nn.Linear(3, 2)
        adam = torch.optim.Adam(toy.parameters(), lr=1e-5)
        toy(torch.ones(1, 3)).sum().backward()
        adam.step()
        torch.save(
            {
                "model": state,
                "optimizer": adam.state_dict(),
                "scheduler": {"milestones": (20, 50), "last_epoch": 3, "_last_lr": [1e-5], "mode": "step"},
                "num_epoch": 60,
                "iteration": 0,
                "epoch": 3,
            },
            folder / "best.pth",
        )
        options |= {"img_size": tuple(size["image"]), "name": "RDE" if model.selects else "irra", "lr": 1e-5, "milestones": (20, 50)}
        options |= {"loss_names": "TAL", "resume_ckpt_file": "", "training": False, "vocab_size": size["vocab"]}
        for key, value in state.items():
            model.state_dict()[key.removeprefix(prefix)].copy_(value.float())
    else:
        from safetensors.torch import save_file

        state = {
            prefix + key: value.to(stored or torch.float16).contiguous()
            for key, value in model.state_dict().items()
            if value.is_floating_point()
        }
        save_file(state, folder / "model.safetensors")
        for key, value in state.items():
            model.state_dict()[key.removeprefix(prefix)].copy_(value.float())
        options |= {"img_size": list(size["image"])}
    (folder / "configs.yaml").write_text(yaml.dump(options))

    height, width = size["image"]
    golden = {"size": size, "texts": [], "images": []}
    with torch.no_grad():
        for text in TEXTS:
            ids = tokenizer.encode(text, size["text_length"])
            bge, tse = model.text(torch.tensor([ids]))
            golden["texts"].append({"text": text, "ids": ids} | embeddings(bge, tse))
        for index, shape in enumerate([(width, height), (50, 90), (13, 7)]):
            image = picture(*shape, seed=seed + index)
            image.save(folder / f"image{index}.png", optimize=True)
            shrunk = np.asarray(resized(image, (width, height), Image.BILINEAR), dtype=np.float32) / 255
            pixels = torch.from_numpy((shrunk - np.float32(MEAN)) / np.float32(STD)).permute(2, 0, 1)
            tokens, bge, tse = model.image(pixels.unsqueeze(0))
            golden["images"].append(
                {"file": f"image{index}.png"} | embeddings(bge, tse) | {"token_sums": rounded(tokens[0].sum(-1))}
            )
    (folder / "golden.json").write_text(json.dumps(golden))


def as_stored(key, value, stored):
    if not value.is_floating_point():
        return value
    if stored is not None:
        return value.to(stored)
    return value.half() if half_as_published(key) else value


def embeddings(bge, tse):
    return {"bge": rounded(bge[0])} | ({} if tse is None else {"tse": rounded(tse[0])})


def rounded(values):
    return [round(float(value), 6) for value in values]


def make_models():
    make_model(
        "published",
        dict(vision_width=128, vision_layers=2, text_width=64, text_layers=3, embed=48, patch=8, stride=8)
        | dict(image=[48, 24], text_length=20, vocab=614, tse=40, tse_hidden=56, ratio=0.3),
        published=True,
        seed=11,
    )
    make_model(
        "trained",
        dict(vision_width=64, vision_layers=3, text_width=128, text_layers=1, embed=72, patch=8, stride=5)
        | dict(image=[44, 27], text_length=16, vocab=580, tse=96, tse_hidden=64, ratio=0.4),
        published=False,
        seed=23,
    )


def make_variants():
    make_model(
        "irra",
        dict(vision_width=64, vision_layers=2, text_width=64, text_layers=2, embed=64, patch=8, stride=8)
        | dict(image=[32, 40], text_length=24, vocab=560, people=7),
        published=True,
        seed=31,
        stored=torch.bfloat16,
        prefix="",
    )
    make_model(
        "long",
        dict(vision_width=64, vision_layers=1, text_width=64, text_layers=2, embed=48, patch=8, stride=6)
        | dict(image=[38, 22], text_length=168, vocab=570, tse=32, tse_hidden=24, ratio=0.3),
        published=False,
        seed=47,
        stored=torch.bfloat16,
        prefix="module.",
    )


class Command:
    """What a pickle would run where it is loaded carelessly."""

    def __reduce__(self):
        import os

        return os.system, ("touch the-pickle-was-run",)


def make_hostile():
    folder = HERE / "hostile"
    folder.mkdir(exist_ok=True)
    state = OrderedDict(weight=torch.zeros(2))
    torch.save({"model": state, "epoch": Command()}, folder / "best.pth")
    (folder / "configs.yaml").write_text("img_size: [8, 8]\n")


# --- tokeniser goldens -------------------------------------------------------------------------------------------

SUBJECTS = ["a man", "A woman", "The pedestrian", "this young girl", "an elderly gentleman", "A short-haired boy"]
CLOTHES = [
    "is wearing a plaid shirt, khaki shorts and flip-flops.",
    "has shoulder-length brown hair; she's in a knee-length skirt",
    "wears a T-shirt with the number 23 on its back & white sneakers",
    "dressed in a long-sleeved turquoise cardigan (unbuttoned) over a black tank-top",
    "carrying a Burberry handbag, 2 shopping bags, and a mobile phone...",
    "walks away from the camera, with his head turned to the left",
    "doesn't carry anything; they've got a backpack, I'd say \u2013 it'll be grey",
    "with a grey/black hooded sweatshirt -- hood up -- and dark-wash denim jeans!",
]
ODD = [
    "", " ", "\t\n\r ", "!", "!!", "! a", "?!?!", "...", "a", "I", "\u00e9", "0123456789", "3.14", "100%", "#1", "@home",
    "jekyll", "Dr. Jekyll and Mr. Hyde", "jekylls", "<|startoftext|>", "a <|endoftext|> b", "<|mask|>", "<start_of_text>",
    "<|STARTOFTEXT|>", "|startoftext|", "don't", "DON'T", "we're you've i'm he'll she'd it's can't", "'s", "rock'n'roll",
    "\u2018curly\u2019 \u201cquotes\u201d", "em\u2014dash en\u2013dash", "\ufb01ne \ufb02ow o\ufb03ce",
    "\uff26\uff35\uff2c\uff2c\uff37\uff29\uff24\uff34\uff28\u3000\uff11\uff12\uff13", "\uff76\uff9e", "\u2121",
    "schÃ¶n", "Ã©tÃ©", "âœ” No problems", "lâ€™humanitÃ©", "doesnâ€™t", "cafÃ© au lait", "Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "MotÃ¶rhead",
    "naïve café résumé", "Å", "A\u030a", "e\u0301", "\u1e9b\u0323", "ﬀ", "Straße", "İstanbul", "ΌΣΟΣ", "ΣΑΣ Σ", "ǅ",
    "\u05d0\u05d9\u05e9 \u05e2\u05dd \u05db\u05d5\u05d1\u05e2", "\u0631\u062c\u0644 \u064a\u0631\u062a\u062f\u064a \u0642\u0645\u064a\u0635\u0627",
    "\u4e00\u4e2a\u7a7f\u7ea2\u8272\u4e0a\u8863\u7684\u5973\u4eba", "\u8d64\u3044\u30b7\u30e3\u30c4\u3092\u7740\u305f\u5973\u6027",
    "\ube68\uac04 \uc154\uce20", "\u0915\u093f\u0924\u093e\u092c", "\u0e1c\u0e39\u0e49\u0e2b\u0e0d\u0e34\u0e07", "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\U0001f44d\U0001f3fd", "\u2764\ufe0f", "red \U0001f45a and blue \U0001f456", "\U0001f1e9\U0001f1ea", "\u2460\u2461", "\u00bd \u00b2 \u2167", "x\u00b2",
    "a\u00a0b", "a\u2003b", "a\u200bb", "a\u200db", "\ufeffbom", "a\u00adb", "tab\there", "line\r\nbreak", "a\u2028b\u2029c", "a\x85b",
    "\x00nul\x01\x02", "\x1b[31mred\x1b[0m", "a\x0bb\x0cc", "a\x1fb", "\x7f", "\ufffd", "\u0301", "a \u0301b",
    "&amp;", "&lt;b&gt;", "&amp;lt;", "&amp;amp;lt;", "&quot;x&quot;", "&nbsp;", "a&nbsp;b", "&eacute;t&eacute;", "&copy2024",
    "&notit;", "&#65;&#x42;", "&#128;", "&#0;", "&#x1F600;", "&#xD800;", "&#1;", "&hellip;", "&unknown;", "AT&T", "a & b",
    "<b>bold</b> &amp; x", "<br/>", "&ThickSpace;", "&NotEqualTilde;", "&amp", "&AMP;", "&Hacek;", "&#x2019;s",
    "C++ & C#", "foo_bar", "a-b-c", "http://example.org/a?b=c&d=e", "user@example.org", "~!@#$%^&*()_+{}|:\"<>?", "\\n", "`", "''''",
    "supercalifragilisticexpialidocious", "donaudampfschifffahrtsgesellschaftskapit\u00e4nsm\u00fctze", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "ABCdefGHI", "iPhone12ProMax", "5ft 11in", "size XXL", "top-left\u2192bottom-right", "\u00a312.50", "\u20ac5", "\u00b0C",
    "\u2026", "\u00ab guillemets \u00bb", "\u201elow\u201c", "\u00bfQu\u00e9?", "\u00a1Hola!", "a\u0338", "\u212b", "\u2126", "\u03d2\u0301", "K", "ſ", "ÿ", "ŉ",
]


def make_tokenizer(vocabulary):
    tokenizer = Tokenizer(read_merges(vocabulary, 49408 - 514), published=True)
    texts = [f"{subject} {clothes}" for subject in SUBJECTS for clothes in CLOTHES]
    texts += ODD + [f"{SUBJECTS[index % 6]} {odd} {CLOTHES[index % 8]}" for index, odd in enumerate(ODD)]
    texts += [" ".join(CLOTHES), " ".join(CLOTHES * 3)]
    rows = [{"text": text, "clean": tokenizer.clean(text), "ids": trimmed(tokenizer.encode(text, 77))} for text in texts]
    (HERE / "tokenizer.json").write_text(json.dumps(rows, ensure_ascii=True, separators=(",", ":")))


def trimmed(ids):
    last = max(index for index, token in enumerate(ids) if token)
    return ids[: last + 1]


# --- image goldens -----------------------------------------------------------------------------------------------


def make_resize():
    folder = HERE / "resize"
    folder.mkdir(exist_ok=True)
    cases = []
    for index, (old, new) in enumerate(
        [
            ((84, 168), (48, 96)),
            ((84, 168), (112, 224)),
            ((61, 97), (32, 64)),
            ((90, 40), (20, 40)),
            ((30, 70), (30, 33)),
            ((3, 5), (17, 29)),
            ((1, 1), (4, 6)),
            ((120, 7), (5, 31)),
            ((50, 90), (45, 31)),
        ]
    ):
        image = picture(*old, seed=100 + index)
        source = f"{index}.png"
        image.save(folder / source, optimize=True)
        for name, filter in [("bilinear", Image.BILINEAR), ("bicubic", Image.BICUBIC)]:
            result = f"{index}-{name}.png"
            resized(image, new, filter).save(folder / result, optimize=True)
            cases.append({"source": source, "result": result, "filter": name, "height": new[1], "width": new[0]})
    (folder / "cases.json").write_text(json.dumps(cases, indent=1) + "\n")


def make_smart_resize():
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    rng = np.random.default_rng(5)
    cases = []
    while len(cases) < 300:
        height, width = (int(side) for side in np.exp(rng.uniform(0, 8.3, 2)))
        low = int(np.exp(rng.uniform(7, 12)))
        high = int(low * np.exp(rng.choice([0, rng.uniform(0, 4)])))
        if max(height, width) <= 200 * min(height, width) and high >= 28 * 28:
            new = smart_resize(height, width, factor=28, min_pixels=low, max_pixels=high)
            cases.append([height, width, low, high, int(new[0]), int(new[1])])
    (HERE / "smart_resize.json").write_text(json.dumps(cases).replace("],", "],\n") + "\n")


def make_decode():
    folder = HERE / "decode"
    folder.mkdir(exist_ok=True)
    rgb = picture(40, 30, seed=7)
    alpha = Image.fromarray(np.tile(np.linspace(0, 255, 40, dtype=np.uint8), (30, 1)))
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    grey = rgb.convert("L")
    grey_alpha = Image.merge("LA", (grey, alpha))
    palette = rgb.quantize(16)
    smooth = rgb.resize((8, 6), Image.BICUBIC).resize((40, 30), Image.BICUBIC)
    cases = []

    def case(name, data, tolerance):
        (folder / name).write_bytes(data)
        expected = name + ".rgb.png"
        converted = Image.open(io.BytesIO(data)).convert("RGB")
        # Pillow keeps the transparent value as it was, which for 16-bit grey cannot be written again.
        converted.info.pop("transparency", None)
        converted.save(folder / expected, optimize=True)
        cases.append({"file": name, "expected": expected, "mean_difference": tolerance})

    def encoded(image, **options):
        buffer = io.BytesIO()
        image.save(buffer, **options)
        return buffer.getvalue()

    case("rgb.png", encoded(rgb, format="PNG"), 0)
    case("rgba.png", encoded(rgba, format="PNG"), 0)
    case("grey.png", encoded(grey, format="PNG"), 0)
    case("grey-alpha.png", encoded(grey_alpha, format="PNG"), 0)
    case("palette.png", encoded(palette, format="PNG"), 0)
    case("palette-transparent.png", encoded(palette, format="PNG", transparency=bytes([0, 128] + [255] * 14)), 0)
    case("one-bit.png", encoded(rgb.convert("1"), format="PNG"), 0)
    case("rgb16.png", png16(np.asarray(rgb)), 0)
    case("rgb.jpg", encoded(smooth, format="JPEG", quality=92), 1.5)
    case("grey.jpg", encoded(grey, format="JPEG", quality=92), 1.5)
    case("progressive.jpg", encoded(smooth, format="JPEG", progressive=True), 1.5)
    case("cmyk.jpg", encoded(smooth.convert("CMYK"), format="JPEG", quality=92), 2.5)
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        name = "turned.jpg" if turn == 6 else f"turned-{turn}.jpg"
        case(name, encoded(smooth, format="JPEG", quality=92, exif=exif), 1.5)
    exif = Image.Exif()
    exif[0x0112] = 8
    case("turned.png", encoded(rgb, format="PNG", exif=exif), 0)
    case("cmyk-adobe-inverted.jpg", with_adobe_marker(encoded(inverted(smooth.convert("CMYK")), format="JPEG", quality=92)), 2.5)
    # Pillow clips 16-bit grey at 255 unless there is an alpha channel, so half of these samples are dark enough.
    grey16 = np.asarray(grey).astype(np.uint16) * np.where(np.arange(grey.width) % 2, 257, 1).astype(np.uint16)
    case("grey16.png", encoded(Image.fromarray(grey16), format="PNG"), 0)
    case("grey16-transparent.png", with_transparent_grey(encoded(Image.fromarray(grey16), format="PNG"), 100), 0)
    case("grey-alpha16.png", png16(np.asarray(grey_alpha)), 0)
    case("palette-one-transparent.png", encoded(palette, format="PNG", transparency=3), 0)
    case("grey-transparent.png", encoded(grey, format="PNG", transparency=100), 0)
    case("rgb-transparent.png", encoded(rgb, format="PNG", transparency=(10, 20, 30)), 0)
    case("two-bit-palette.png", encoded(rgb.quantize(4), format="PNG", bits=2), 0)
    case("lossless.webp", encoded(rgb, format="WEBP", lossless=True), 0)
    case("alpha.webp", encoded(rgba, format="WEBP", lossless=True, exact=True), 0)
    case("lossy.webp", encoded(smooth, format="WEBP", quality=90), 1.5)
    frames = [picture(10, 8, seed=seed) for seed in (1, 2)]
    (folder / "animated.gif").write_bytes(encoded(frames[0], format="GIF", save_all=True, append_images=frames[1:]))
    (folder / "animated.webp").write_bytes(encoded(frames[0], format="WEBP", save_all=True, append_images=frames[1:]))
    (folder / "still.bmp").write_bytes(encoded(frames[0], format="BMP"))
    (folder / "cases.json").write_text(json.dumps(cases, indent=1) + "\n")


def inverted(image):
    return Image.frombytes(image.mode, image.size, bytes(255 - byte for byte in image.tobytes()))


def with_adobe_marker(jpeg):
    """Says that Adobe wrote the file, whose four inks then are stored inverted."""
    if b"Adobe" in jpeg:
        return jpeg
    marker = b"Adobe" + bytes([0, 100, 0, 0, 0, 0, 0])
    return jpeg[:2] + b"\xff\xee" + (len(marker) + 2).to_bytes(2, "big") + marker + jpeg[2:]


def png16(pixels):
    """A PNG of 16 bits a sample, RGB or grey with alpha, which Pillow reads but does not write."""
    low = np.random.default_rng(3).integers(0, 256, pixels.shape, dtype=np.uint16)
    samples = (pixels.astype(np.uint16) << 8 | low).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in samples)
    height, width, channels = pixels.shape
    colour_type = {2: 4, 3: 2}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return PNG_SIGNATURE + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")


def with_transparent_grey(png, grey):
    """Names a 16-bit grey that is transparent, which Pillow does not write for these."""
    header_end = len(PNG_SIGNATURE) + 25
    return png[:header_end] + png_chunk(b"tRNS", struct.pack(">H", grey)) + png[header_end:]


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


if __name__ == "__main__":
    vocabulary, *parts = sys.argv[1:]
    torch.manual_seed(0)
    if not parts or "models" in parts:
        make_models()
    if not parts or "variants" in parts:
        make_variants()
    if not parts or "hostile" in parts:
        make_hostile()
    if not parts or "tokenizer" in parts:
        make_tokenizer(vocabulary)
    if not parts or "resize" in parts:
        make_resize()
    if not parts or "smart_resize" in parts:
        make_smart_resize()
    if not parts or "decode" in parts:
        make_decode()
