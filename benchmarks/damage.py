"""What checking for damage costs: seconds a GB, beside hashlib alone on the same bytes.

    python benchmarks/damage.py [--gb 2] [--folder DIR]

Writes a folder of random bytes, seals it, and then reads it in turn, three times each: by
`perdure.seals.damaged`, and by a loop over `hashlib.sha256` with the same buffer. Aim: at most 1.1.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from perdure.seals import CHUNK, damaged, seal

FILES = 8


def main() -> int:
    options = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--gb", type=float, default=2.0)
    options.add_argument("--folder", type=Path, default=None, help="default: the system's own")
    wanted = options.parse_args()
    with tempfile.TemporaryDirectory(dir=wanted.folder) as name:
        folder = Path(name)
        block = os.urandom(CHUNK)
        for i in range(FILES):
            with open(folder / f"{i}.safetensors", "wb") as file:
                for _ in range(int(wanted.gb * 1e9 / FILES / CHUNK)):
                    file.write(block)
        size = sum(p.stat().st_size for p in folder.iterdir()) / 1e9
        started = time.perf_counter()
        seal(folder, {})
        sealing = time.perf_counter() - started
        ours, plain = [], []
        for _ in range(3):
            started = time.perf_counter()
            assert damaged(folder) == ""
            ours.append(time.perf_counter() - started)
            started = time.perf_counter()
            for path in sorted(folder.glob("*.safetensors")):
                digest = hashlib.sha256()
                with open(path, "rb", buffering=0) as stream:
                    while chunk := stream.read(CHUNK):
                        digest.update(chunk)
            plain.append(time.perf_counter() - started)
        print(f"{size:.2f} GB in {FILES} files")
        print(f"sealing (sync and hash): {sealing / size:.2f} s a GB")
        print(
            f"checking: {median(ours) / size:.2f} s a GB; hashlib alone {median(plain) / size:.2f}"
        )
        print(f"ratio {median(ours) / median(plain):.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
