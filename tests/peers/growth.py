#!/usr/bin/env python3
"""How time grows when the work grows tenfold: ten times the queries of the interaction, ten times the gallery of an exact search.

No peer: both sizes run in turn on this machine, and what counts is how many times as long the larger one takes. The rankings
of a part are compared first: what is found in a tenth of a gallery is found again in the whole wherever it is still the best.
"""

import json
import statistics
import subprocess
import tempfile

import numpy as np
from bench import Service, arguments, in_turn, save, stubs
from gallery import DIMENSION, fill

TOP = 10
# Ten times as many are still one call.
BATCH = 24


def growth(seconds, small, large):
    """Medians of both sizes and, pair by pair, how many times as long the larger one took."""
    ratios = sorted(more / less for less, more in zip(seconds[small], seconds[large]))
    return {
        "runs_s": seconds,
        "median_s": {name: statistics.median(runs) for name, runs in seconds.items()},
        "times_as_long": {"median": statistics.median(ratios), "min": ratios[0], "max": ratios[-1]},
    }


def interaction(options):
    """The interaction of `thicket demo` over some queries and over ten times as many, in a gallery of the same size."""
    few, many = str(options.queries), str(10 * options.queries)
    seconds = {few: [], many: []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            for queries in (few, many):
                command = [options.binaries / "thicket", "demo", "--queries", queries, "--json", "--out", folder]
                answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                if answer["queries"] != int(queries):
                    raise SystemExit(f"{queries} queries asked for, {answer['queries']} run")
                seconds[queries].append(answer["seconds"]["thi"])
    return growth(seconds, few, many)


def search(options):
    """Exact search through gRPC among some vectors and among ten times as many, and for ten times as many queries."""
    from thicket.v1 import embedding_pb2, gallery_pb2, gallery_pb2_grpc

    queries = np.random.default_rng(11).standard_normal((10 * BATCH, DIMENSION), dtype=np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)

    def request(count):
        vectors = [embedding_pb2.Vector(values=row) for row in queries[:count]]
        return gallery_pb2.SearchRequest(collection="peers", top=TOP, queries=vectors)

    with tempfile.TemporaryDirectory(dir=options.scratch) as data:

        def role(name):
            return Service(options.binaries / "thicket-gallery", "--data", f"{data}/{name}", "--log", "warn")

        with role("small") as small, role("large") as large:
            stub = {name: gallery_pb2_grpc.GalleryServiceStub(s.channel) for name, s in [("small", small), ("large", large)]}
            fill(small, gallery_pb2, stub["small"], options.vectors)
            fill(large, gallery_pb2, stub["large"], 10 * options.vectors)
            found = {name: stub[name].Search(request(BATCH), timeout=600).rankings for name in stub}
            for part, whole in zip(found["small"], found["large"]):
                scores = [hit.score for hit in whole.hits]
                better = [hit.item.id for hit in part.hits if hit.score > scores[-1] + 1e-5]
                if not set(better) <= {hit.item.id for hit in whole.hits}:
                    raise SystemExit("the larger gallery misses what the smaller one found")
            sizes = {
                "small": lambda: stub["small"].Search(request(BATCH), timeout=600),
                "large": lambda: stub["large"].Search(request(BATCH), timeout=600),
                "large, 10 x queries": lambda: stub["large"].Search(request(10 * BATCH), timeout=600),
            }
            seconds = in_turn(sizes, options.rounds)
    by_gallery = {name: seconds[name] for name in ("small", "large")}
    by_queries = {name: seconds[name] for name in ("large", "large, 10 x queries")}
    return {
        "gallery": growth(by_gallery, "small", "large"),
        "queries": growth(by_queries, "large", "large, 10 x queries"),
    }


def main():
    parser = arguments(__doc__)
    parser.add_argument("--queries", type=int, default=120, help="the smaller number of queries")
    parser.add_argument("--vectors", type=int, default=10_000, help="the smaller gallery")
    parser.add_argument("--scratch", help="folder for the galleries' data: 2 GB")
    options = parser.parse_args()
    stubs()
    results = {"interaction, 10 x queries": interaction(options)}
    for name, found in search(options).items():
        results[f"exact search, 10 x {name}"] = found
    for name, found in results.items():
        print(f"{name}: {found['times_as_long']['median']:.2f} times as long", flush=True)
    save(options.out, "growth", results)


if __name__ == "__main__":
    main()
