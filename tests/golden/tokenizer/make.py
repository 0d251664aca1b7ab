"""Makes the goldens of the tokenisers: 10,000 texts and what the Python originals make of them. See README.md.

Usage: python make.py PATH_TO/bpe_simple_vocab_16e6.txt

Needs ftfy==6.3.1, regex, transformers==4.57.6 and torch (which ../clip/make.py imports).
"""

import gzip
import html.entities
import importlib.util
import json
import os
import random
import sys
import tempfile
import unicodedata
from pathlib import Path

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parent
COUNT = 10_000
SEED = 20_240_611
CLIP_LENGTH = 77
# Ids of a longer text are cut here; the texts of 5,000 characters are meant for time and for what happens at the cut.
QWEN_LENGTH = 400

SUBJECTS = ["a man", "A woman", "The pedestrian", "this young girl", "An elderly gentleman", "A short-haired boy", "He", "someone"]
VERBS = ["is wearing", "wears", "has on", "walks in", "is dressed in", "stands with", "'s got", "carries", "can't be seen without"]
COLOURS = ["red", "dark-blue", "off-white", "grey", "BLACK", "light green", "multi-coloured", "khaki", "turquoise", "rose/pink"]
THINGS = [
    "a plaid shirt", "shorts", "flip-flops", "a knee-length skirt", "a T-shirt (size XXL)", "sneakers", "a cardigan",
    "a Burberry handbag", "2 shopping bags", "an iPhone12", "a back-pack", "dark-wash denim jeans", "a hoodie", "a caf\u00e9 apron",
    "a na\u00efve print", "a jacket costing \u00a3120", "No. 23's jersey", "an umbrella", "glasses", "a baseball cap",
]
TAILS = ["", ".", "...", "!", "; it's late", " \u2013 I'd say so", " & walks away", ", 5ft 11in tall", " (from behind)", "?!", " at 10:45pm"]
ACCENTED = [
    "sch\u00f6n", "\u00e9t\u00e9", "caf\u00e9 au lait", "l\u2019humanit\u00e9", "\u201cquoted\u201d", "na\u00efve", "\u043f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440", "\u4e00\u4e2a\u7a7f\u7ea2\u8272\u4e0a\u8863\u7684\u5973\u4eba",
    "Stra\u00dfe", "\u2713 ok", "\u20ac5", "pi\u00f1ata \u2014 s\u00ed", "\u0141\u00f3d\u017a", "d\u011bti", "\u03b1\u03b2\u03b3\u03b4", "\u00bfQu\u00e9?", "\u2026 more", "\u00a0space", "\U0001f600 smile", "\u5973\u6027\u304c\u8d64\u3044",
]
CODECS = ["latin-1", "cp1252", "cp1251", "cp1250", "mac_roman", "cp437", "iso-8859-2", "cp1253", "cp1254"]
SPACES = " \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000\u180e\u200b\u2060\ufeff"
SPECIAL = [
    "<|startoftext|>", "<|endoftext|>", "<|mask|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>", "<|vision_pad|>", "<start_of_text>", "<end_of_text>", "<|pad|>", "</w>", "[CLS]", "<s>", "</s>", "<unk>",
]
CASES = "\u0130\u0131\u017f\u1e9e\u00df\u0149\u01f0\u0390\u03b0\u0587\u1e96\u1f50\u1fb7\ufb03\u01c5\u01c8\u01cb\u01f2\u03a3\u03c3\u03c2\u212a\u212b\u2126\u13a0\uab70\u10a0\u2d00\u1c90\u10d0\U00010400\U00010428\ua64a\u1c88\u03f4\u0345\u00b5\u1e9b"
MARKS = "\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0323\u0327\u0328\u0331\u0338\u0344\u0345\u034f\u0360\u05b0\u05bc\u064b\u0651\u0654\u093c\u094d\u09be\u0b3e\u0bbe\u0cd5\u0e38\u0eb8\u0f39\u0f71\u102e\u3099\u309a\u20d0\u20e3\ufe20\U000110ba\U0001d165\U0001e8d0"
EMOJI = [
    "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466", "\U0001f44d\U0001f3fd", "\u2764\ufe0f", "\u2764\ufe0e", "\U0001f1e9\U0001f1ea", "\U0001f1fa", "1\ufe0f\u20e3", "#\u20e3",
    "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "\U0001f3f3\ufe0f\u200d\U0001f308", "\U0001f9d1\U0001f3ff\u200d\U0001f680", "\U0001f45a", "\u26f9\U0001f3fb\u200d\u2640\ufe0f", "\U0001fae0", "\u00a9\ufe0f", "\U0001fabe",
]


def clip_module():
    spec = importlib.util.spec_from_file_location("clip_goldens", GOLDEN / "clip" / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def caption(rng):
    parts = [f"{rng.choice(COLOURS)} {rng.choice(THINGS)}" for _ in range(rng.randint(1, 4))]
    return f"{rng.choice(SUBJECTS)} {rng.choice(VERBS)} {', '.join(parts)}{rng.choice(TAILS)}"


def code_point(rng, low, high):
    while True:
        value = rng.randrange(low, high)
        if not 0xD800 <= value <= 0xDFFF:
            return chr(value)


def every_code_point_of_the_first_plane():
    points = [chr(value) for value in range(0x10000) if not 0xD800 <= value <= 0xDFFF]
    step = 24
    return ["".join(points[at : at + step]) for at in range(0, len(points), step)]


def other_planes(rng):
    texts = []
    ranges = list(range(0x10000, 0x32400, 128)) + [0xE0000, 0xE0080, 0xE0100, 0xE0180]
    ranges += list(range(0x40000, 0xE0000, 0x8000)) + list(range(0xF0000, 0x110000, 0x4000))
    for low in ranges:
        points = [code_point(rng, low, min(low + 128, 0x110000)) for _ in range(10)]
        texts.append("".join(point + rng.choice(["", "", " ", "a"]) for point in points))
    return texts


def mojibake(rng):
    text = rng.choice(ACCENTED) + rng.choice(["", " ", " and "]) + rng.choice(ACCENTED + THINGS)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        codec = rng.choice(CODECS)
        text = text.encode("utf-8").decode(codec, errors=rng.choice(["ignore", "replace"]))
    if rng.random() < 0.3:
        text = text[: rng.randint(1, len(text) or 1)]
    return text if rng.random() < 0.5 else f"{caption(rng)} {text}"


def entity(rng):
    name = rng.choice(sorted(html.entities.html5))
    number = rng.choice([0, 1, 9, 13, 38, 60, 65, 127, 128, 150, 159, 160, 0x2019, 0xD800, 0xFDD0, 0xFFFE, 0x1F600, 0x10FFFF, 0x110000, 10**12])
    return rng.choice(
        [
            "&" + name, "&" + name.rstrip(";"), "&" + name.rstrip(";") + rng.choice("x1=-"), f"&#{number};", f"&#x{number:x};", f"&#X{number:X}",
            f"&#{number}", "&amp;" + name, "&amp;amp;" + name, f"&amp;#{number};", "&#;", "&;", "&", "&#x;", "&#xg;", "&" + "x" * rng.randint(1, 40) + ";",
            "&#" + "1" * rng.randint(5, 40) + ";", "&AMP;lt;", "& amp;", "&a m p;", "&NBSP;", "&Eacute", "&#\u0663\u0664;", "&lt", "&ltfoo;",
        ]
    )


def combining(rng):
    base = [rng.choice(["a", "e", "A", "K", "\u0915", "\u1100", "\u1161", "\u11a8", "\uac00", "\u05e9", "\u0644", "\u3046", " ", "1", "\u00c5", "\u1e69"]) for _ in range(rng.randint(1, 6))]
    return "".join(letter + "".join(rng.choice(MARKS) for _ in range(rng.choice([0, 1, 1, 2, 3, 30]))) for letter in base)


def controls(rng):
    escapes = ["\x1b[31m", "\x1b[0m", "\x1b[1;31m", "\x1b[m", "\x1b[2K", "\x1b[", "\x1b", "\x1b]0;title\x07", "\x9b31m", "\x1b[?25l", "\x1b[38;5;12m", "\x1b[;m", "\x1b[1\x1b[0m", "\x1b(B"]
    plain = [chr(value) for value in list(range(32)) + list(range(127, 160))] + ["\u202e", "\u2066", "\ufff9", "\ufffd", "\ufffe", "\uffff", "\u206a"]
    return "".join(rng.choice([rng.choice(escapes), rng.choice(plain), rng.choice(["red", "A hat", " "])]) for _ in range(rng.randint(1, 9)))


def right_to_left(rng):
    alphabets = [(0x5D0, 0x5EB), (0x620, 0x64B), (0x710, 0x730), (0x780, 0x7A6), (0x7CA, 0x7EB), (0xFB1D, 0xFDFF), (0xFE70, 0xFEFD), (0x1E900, 0x1E944)]
    marks = ["\u200e", "\u200f", "\u202a", "\u202b", "\u202c", "\u2067", "\u2069", "\u061c"]
    words = ["".join(code_point(rng, *rng.choice(alphabets)) for _ in range(rng.randint(1, 8))) for _ in range(rng.randint(1, 5))]
    return "".join(word + rng.choice([" ", ", ", rng.choice(marks), " hat "]) for word in words)


def spaces(rng):
    return "".join(rng.choice(["a", "red", "it's", "7", "-"]) + "".join(rng.choice(SPACES) for _ in range(rng.randint(0, 4))) for _ in range(rng.randint(1, 8)))


def special(rng):
    def variant(token):
        return rng.choice([token, token, token.upper(), token.title(), token[:-1], token.replace("|", "||"), token + token, token.replace("<", "\uff1c"), "x" + token + "y"])

    return rng.choice(["", " ", "a ", "hat"]).join(variant(rng.choice(SPECIAL)) for _ in range(rng.randint(1, 3)))


def casing(rng):
    return "".join(rng.choice(list(CASES) + ["A", "b", " ", ".", "'", "\u03a3", "\u0301", "\u00ad"]) for _ in range(rng.randint(1, 12)))


def typography(rng):
    wide = "".join(chr(0xFEE0 + ord(letter)) if 33 <= ord(letter) <= 126 else letter for letter in caption(rng)[:40])
    quotes = "".join(rng.choice("\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u2039\u203a\u00ab\u00bb\u02bc\u2032'\"`\u00b4") + rng.choice(["s", "t", "ll", "rock", " ", "re"]) for _ in range(rng.randint(1, 8)))
    ligatures = "".join(rng.choice("\ufb00\ufb01\ufb02\ufb03\ufb04\ufb05\ufb06\u0132\u0133\u01c4\u01c9\u01cc\u0149\uff76\uff9e\uffe0\u2121\u33a1") + rng.choice("ae ") for _ in range(rng.randint(1, 8)))
    return rng.choice([wide, quotes, ligatures])


def anything(rng):
    makers = [caption, mojibake, entity, combining, controls, right_to_left, spaces, special, casing, typography, emoji]
    return "".join(rng.choice(makers)(rng)[: rng.randint(1, 40)] + rng.choice(["", " "]) for _ in range(rng.randint(2, 4)))


def emoji(rng):
    return "".join(rng.choice(EMOJI) + rng.choice(["", "", " ", "hat", "\u200d", "\ufe0f"]) for _ in range(rng.randint(1, 7)))


def long_texts(rng):
    makers = [caption, mojibake, entity, combining, controls, spaces, casing]
    texts = []
    for index in range(14):
        text = ""
        while len(text) < 5000:
            text += makers[index % len(makers)](rng) + " "
        texts.append(text[:5000])
    return texts + ["a" * 900, "\u00e9" * 500, "! " * 2500, "\u4eba" * 300, "'" * 900, "-" * 1000]


def make_texts():
    rng = random.Random(SEED)
    texts = ["", " ", "jekyll", "Dr. Jekyll"] + every_code_point_of_the_first_plane() + other_planes(rng) + long_texts(rng)
    plan = [(caption, 1700), (mojibake, 700), (entity, 500), (emoji, 300), (combining, 400), (controls, 350), (right_to_left, 200)]
    plan += [(spaces, 250), (special, 250), (casing, 300), (typography, 350)]
    for maker, count in plan:
        texts += [maker(rng) for _ in range(count)]
    while len(texts) < COUNT:
        texts.append(anything(rng))
    assert len(texts) == COUNT, len(texts)
    assert not any(0xD800 <= ord(letter) <= 0xDFFF for text in texts for letter in text)
    return texts


def write(name, rows):
    lines = "".join(json.dumps(row, ensure_ascii=True, separators=(",", ":")) + "\n" for row in rows)
    # Without a time stamp, so that the same goldens are the same file.
    (HERE / name).write_bytes(gzip.compress(lines.encode(), 9, mtime=0))


def clip_rows(texts, vocabulary):
    clip = clip_module()
    tokenizer = clip.Tokenizer(clip.read_merges(vocabulary, 49_408 - 514), published=True)
    for text in texts:
        cleaned = tokenizer.clean(text)
        yield [None if cleaned == text else cleaned, clip.trimmed(tokenizer.encode(text, CLIP_LENGTH))]


def qwen_rows(texts, folder):
    """Of the tokenizer written in Python alone, which shares no code with the one in Rust."""
    from transformers import Qwen2Tokenizer

    described = json.loads((GOLDEN / "qwen" / folder / "tokenizer.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as place:
        vocabulary, merges = os.path.join(place, "vocab.json"), os.path.join(place, "merges.txt")
        Path(vocabulary).write_text(json.dumps(described["model"]["vocab"]), encoding="utf-8")
        lines = [pair if isinstance(pair, str) else " ".join(pair) for pair in described["model"]["merges"]]
        Path(merges).write_text("\n".join(lines) + "\n", encoding="utf-8")
        names = [token["content"] for token in described["added_tokens"]]
        # Special tokens that a user writes are text.
        slow = Qwen2Tokenizer(vocabulary, merges, additional_special_tokens=names, split_special_tokens=True)
        for text in texts:
            ids = slow(text, add_special_tokens=False)["input_ids"]
            yield [len(ids), ids[:QWEN_LENGTH]]


def hugging_face_rows(texts, folder):
    from transformers import CLIPTokenizerFast

    fast = CLIPTokenizerFast.from_pretrained(GOLDEN / "clip" / folder)
    for text in texts:
        yield fast(text, truncation=True, max_length=CLIP_LENGTH)["input_ids"]


if __name__ == "__main__":
    (vocabulary,) = sys.argv[1:]
    texts = make_texts()
    print("Python", sys.version.split()[0], "with Unicode", unicodedata.unidata_version)
    write("texts.jsonl.gz", texts)
    write("clip.jsonl.gz", clip_rows(texts, vocabulary))
    for folder in ["tied", "untied"]:
        write(f"qwen-{folder}.jsonl.gz", qwen_rows(texts, folder))
    for folder in ["hf-files", "hf-json"]:
        write(f"clip-{folder}.jsonl.gz", hugging_face_rows(texts, folder))
