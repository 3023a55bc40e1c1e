"""The parts of the pages in docs/ that are made, not written: run by `make docs`."""
