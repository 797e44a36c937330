"""One contender, one run, in a process of its own.

    python -m benchmarks.dedup.contenders NAME FILE

Each reads the same file of texts, makes three-word shingles and finds the families of
near-duplicates at 0.8 with 128 MinHash values in 18 bands of 7. Prints one line of JSON: seconds
(without start and imports), peak memory in MB, and writes the family of each text to FILE.NAME.
"""

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasketch import MinHash, MinHashLSH
from rensa import RMinHash, RMinHashLSH

from benchmarks.dedup.corpus import read, shingles
from nexa_distill.deduplication.minhash import cluster_texts, union_labels
from nexa_distill.deduplication.minhash_store import MinHashSettings, SketchStore, sketch_batch
from nexa_distill.storage.thread_pool import map_in_order

BANDS, ROWS, VALUES, THRESHOLD = 18, 7, 128, 0.8


def ours(path: Path) -> list[int]:
    """As the stage does it: words and signatures on disk, exact decisions."""
    how = MinHashSettings(THRESHOLD, 3, VALUES)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        store = SketchStore(Path(folder) / "sketches", how)
        source = read(path)
        batches = iter(lambda: list(itertools.islice(source, 4096)), list[str]())
        numbers = [
            store.add(batch) for batch in map_in_order(lambda b: sketch_batch(pa.array(b, pa.string()), how), batches)
        ]
        store.close()
        count = len(store)
        found = cluster_texts(store, np.arange(count), np.zeros(count, np.uint64), how)
        text_of = np.concatenate(numbers)
        return [int(family) for family in found[text_of]]


def datasketch(path: Path) -> list[int]:
    """MinHash and MinHashLSH; a candidate counts when its estimated similarity is 0.8."""
    index = MinHashLSH(num_perm=VALUES, params=(BANDS, ROWS))
    hashes = list[MinHash]()
    pairs = list[tuple[int, int]]()
    for number, text in enumerate(read(path)):
        each = MinHash(num_perm=VALUES)
        each.update_batch([shingle.encode() for shingle in shingles(text)])
        pairs += [(other, number) for other in index.query(each) if hashes[other].jaccard(each) >= THRESHOLD]
        index.insert(number, each)
        hashes.append(each)
    return _joined(len(hashes), pairs)


def rensa(path: Path) -> list[int]:
    """R-MinHash in batches and its LSH (126 values: it wants equal bands), by the estimate."""
    values = BANDS * ROWS
    index = RMinHashLSH(THRESHOLD, values, BANDS)
    hashes, pairs = list[RMinHash](), list[tuple[int, int]]()
    source = read(path)
    while batch := list(itertools.islice(source, 4096)):
        for each in RMinHash.from_token_sets([list(shingles(t)) for t in batch], values, 42):
            number = len(hashes)
            pairs += [(other, number) for other in index.query(each) if hashes[other].jaccard(each) >= THRESHOLD]
            index.insert(number, each)
            hashes.append(each)
    return _joined(len(hashes), pairs)


def _joined(count: int, pairs: list[tuple[int, int]]) -> list[int]:
    labels = np.arange(count)
    both = np.array(pairs, np.int64).reshape(-1, 2)
    union_labels(labels, both[:, 0], both[:, 1])
    return [int(label) for label in labels]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=["ours", "datasketch", "rensa"])
    parser.add_argument("file", type=Path)
    args = parser.parse_args()
    work = {"ours": ours, "datasketch": datasketch, "rensa": rensa}[args.name]
    started = time.perf_counter()
    found = work(args.file)
    seconds = time.perf_counter() - started
    args.file.with_suffix(f".{args.name}").write_text(json.dumps(found))
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb()}))


def peak_mb() -> float:
    """Of this program alone: getrusage would count the process that started it."""
    status = Path("/proc/self/status").read_text().split("VmHWM:")[1]
    return int(status.split()[0]) / 1024


if __name__ == "__main__":
    main()
