"""Files that the libraries wrote, in tests/data: what is averaged is what each library itself would load."""
