#!/usr/bin/env python3
"""Draws how many times as fast Thicket was as each peer, from the documents of a run: one row for each pair, the median as a
dot and the smallest and largest ratio as a line, on a logarithmic axis where 1 is equal.

    plot.py RESULT.json... --out ratios.svg
"""

import argparse
import json
import pathlib

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "thicket"
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import FuncFormatter, NullFormatter  # noqa: E402


def ratios(document, path=()):
    """Every comparison of a document, with the names above it."""
    if not isinstance(document, dict):
        return
    for name, value in document.items():
        if name == "times_as_fast_as_it":
            yield " / ".join(path), value
        else:
            yield from ratios(value, (*path, name))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("documents", type=pathlib.Path, nargs="+")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    options = parser.parse_args()
    rows = []
    for path in options.documents:
        work = path.stem.partition("-")[0]
        rows += ratios(json.loads(path.read_text())["results"], (work,))
    if not rows:
        raise SystemExit("none of the documents holds a comparison")
    figure, axis = plt.subplots(figsize=(9, 0.32 * len(rows) + 1.2))
    for place, (name, ratio) in enumerate(reversed(rows)):
        colour = "#1a7f5a" if ratio["median"] >= 1 else "#b4472e"
        axis.plot([ratio["min"], ratio["max"]], [place, place], color=colour, linewidth=2)
        axis.plot(ratio["median"], place, "o", color=colour)
        axis.annotate(f"{ratio['median']:.2f}", (ratio["max"], place), (6, -3), textcoords="offset points", fontsize=8)
    axis.axvline(1, color="#555555", linewidth=1)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_yticks(range(len(rows)), [name for name, _ in reversed(rows)], fontsize=8)
    axis.set_xlabel("times as fast as the peer (dot: median of the runs, line: smallest to largest)")
    axis.margins(x=0.12, y=0.02)
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(options.out, metadata={"Date": None})
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
