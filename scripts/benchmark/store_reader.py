"""Read all objects below an address with obstore, and keep none: `store_reader.py s3://bucket/run 16 8 pieces`.

The numbers are the connections, and the MiB of a request; 0 for whole objects. What comes is taken in `pieces`, by a
thread for each connection, or as `bytes`, each answer at once, by one thread for all.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
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
        return sum(map(len, obstore.get(store, part[0], options=part[1]).stream(min_chunk_size=1 << 18)))

    if way == "bytes":
        print(asyncio.run(_read_all(store, iter(parts), connections)))
        return
    with ThreadPoolExecutor(connections) as pool:
        print(sum(pool.map(read, parts)))


async def _read_all(store: Any, parts: Iterator[tuple[str, Any]], connections: int) -> int:
    async def read() -> int:
        count = 0
        for path, options in parts:
            count += len(await (await obstore.get_async(store, path, options=options)).bytes_async())
        return count

    return sum(await asyncio.gather(*(read() for _ in range(connections))))


if __name__ == "__main__":
    main()
