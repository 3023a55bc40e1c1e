"""Read all objects below an address with obstore, and keep none: `store_reader.py s3://bucket/run 16 8 pieces`.

The numbers are the connections, with a thread for each, and the MiB of a request; 0 for whole objects. What comes is
taken in `pieces`, or as `bytes`, each answer at once.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import obstore
from obstore.store import from_url


def main() -> None:
    """Read, and print how many bytes that were."""
    address, connections, mebibytes, way = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    store: Any = from_url(address, client_options={"allow_http": True, "timeout": "600s"})
    parts: list[tuple[str, dict[str, Any]]] = []
    for each in (each for page in obstore.list(store) for each in page):
        step = mebibytes << 20 or each["size"]
        for begin in range(0, each["size"], step):
            whole = {"if_match": each["e_tag"]}
            parts.append((each["path"], whole | {"range": (begin, min(begin + step, each["size"]))}))

    def read(part: tuple[str, Any]) -> int:
        answer = obstore.get(store, part[0], options=part[1])
        return len(answer.bytes()) if way == "bytes" else sum(map(len, answer.stream(min_chunk_size=1 << 18)))

    with ThreadPoolExecutor(connections) as pool:
        print(sum(pool.map(read, parts)))


if __name__ == "__main__":
    main()
