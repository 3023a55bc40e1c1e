"""Have the real libraries write small checkpoints, as they lie in tests/data.

    python scripts/make_library_files.py FOLDER               all of them, each into a folder of its name and version
    python scripts/make_library_files.py FOLDER mlx torch     some of them
    python scripts/make_library_files.py FOLDER --compare tests/data

It needs the libraries (`make test-libraries` installs them) and no network. A library that is not installed is named
and left out. `--compare` prints where the files that were written are called otherwise, or hold other tensors, than
those of the same library in another folder, and then exits with 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from library_files import averages, containers, hugging_face, loops, megatron_fsdp, olmo, plain, programs, ranks, zero
from library_files.comparing import differences

WRITERS = {
    **plain.WRITERS,
    **hugging_face.WRITERS,
    **loops.WRITERS,
    **averages.WRITERS,
    **zero.WRITERS,
    **ranks.WRITERS,
    **olmo.WRITERS,
    **megatron_fsdp.WRITERS,
    **programs.WRITERS,
    **containers.WRITERS,
}


def main() -> int:
    """Write the files, and compare them where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("libraries", nargs="*", metavar="LIBRARY", help=", ".join(WRITERS))
    parser.add_argument("--compare", type=Path, metavar="FOLDER")
    asked = parser.parse_args()
    different = 0
    for name in asked.libraries or WRITERS:
        try:
            written = WRITERS[name](asked.folder)
        except ImportError as error:
            print(f"{name}: left out, {error}")
            continue
        print(f"{name}: {written.name}")
        if asked.compare is not None:
            found = differences(written, asked.compare)
            different += len(found)
            print("\n".join(f"  {line}" for line in found or ["as before"]))
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
