#!/usr/bin/env python3
"""FAISS through gRPC against FAISS in this process: the same random unit vectors, the same queries, exact search.

Before anything is timed, every ranking of both sides is compared.
"""

import tempfile

import faiss
import numpy as np
from bench import Service, arguments, compared, in_turn, save, stubs

DIMENSION = 1536
TOP = 10
BLOCK = 10_000
FINGERPRINT = "peers"


def block(number, count):
    """Rows `number * BLOCK` and on, the same whoever asks."""
    rows = np.random.default_rng([7, number]).standard_normal((count, DIMENSION), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def blocks(vectors):
    for number in range((vectors + BLOCK - 1) // BLOCK):
        yield number * BLOCK, block(number, min(BLOCK, vectors - number * BLOCK))


def varint(value):
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number, content):
    """A length-delimited field. Messages are written by hand: setting 1,536 floats of a million takes an hour."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def upserts(vectors):
    name = field(1, b"peers")
    for first, rows in blocks(vectors):
        for place, row in enumerate(rows):
            head = name + field(2, str(first + place).encode())
            yield head + field(3, field(1, row.tobytes())) + field(6, FINGERPRINT.encode())


def fill(service, v1, stub, vectors):
    stub.CreateCollection(
        v1.CreateCollectionRequest(name="peers", model_fingerprint=FINGERPRINT, dimension=DIMENSION, similarity=1)
    )
    call = service.channel.stream_stream(
        "/thicket.v1.GalleryService/Upsert",
        request_serializer=lambda message: message,
        response_deserializer=lambda message: message,
    )
    answers = sum(1 for _ in call(upserts(vectors), timeout=7200))
    held = stub.ListCollections(v1.ListCollectionsRequest()).collections[0].items
    if answers != vectors or held != vectors:
        raise SystemExit(f"{vectors} vectors sent, {answers} answered, {held} held")


def run(vectors, options):
    from thicket.v1 import embedding_pb2, gallery_pb2, gallery_pb2_grpc

    with tempfile.TemporaryDirectory(dir=options.scratch) as data, Service(
        options.binaries / "thicket-gallery", "--data", data, "--log", "warn"
    ) as service:
        stub = gallery_pb2_grpc.GalleryServiceStub(service.channel)
        fill(service, gallery_pb2, stub, vectors)
        index = faiss.IndexFlatIP(DIMENSION)
        for _, rows in blocks(vectors):
            index.add(rows)
        queries = np.random.default_rng(11).standard_normal((max(options.batches), DIMENSION), dtype=np.float32)
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        results = {}
        for batch in options.batches:
            rows = queries[:batch]
            request = gallery_pb2.SearchRequest(
                collection="peers", top=TOP, queries=[embedding_pb2.Vector(values=row) for row in rows]
            )
            through = stub.Search(request, timeout=600).rankings
            scores, ids = index.search(rows, TOP)
            for query, ranking in enumerate(through):
                found = [hit.score for hit in ranking.hits]
                if not np.allclose(found, scores[query], atol=1e-5):
                    raise SystemExit(f"query {query}: scores {found} through gRPC, {scores[query]} in process")
            same = np.mean([[int(hit.item.id) for hit in r.hits] == list(i) for r, i in zip(through, ids)])
            seconds = in_turn(
                {"thicket": lambda: stub.Search(request, timeout=600), "faiss": lambda: index.search(rows, TOP)},
                options.rounds,
            )
            results[f"batch {batch}"] = {
                "recall": 1.0,
                "equal rankings": float(same),
                **compared(seconds, "thicket", batch),
            }
            print(vectors, batch, results[f"batch {batch}"]["faiss"]["times_as_fast_as_it"], flush=True)
        return results


def main():
    parser = arguments(__doc__)
    parser.add_argument("--vectors", type=int, nargs="+", default=[1_000, 20_000, 1_000_000])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--scratch", help="folder for the gallery's data: 20 GB for a million vectors")
    options = parser.parse_args()
    stubs()
    save(options.out, "gallery", {f"{vectors} vectors": run(vectors, options) for vectors in options.vectors})


if __name__ == "__main__":
    main()
