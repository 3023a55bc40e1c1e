"""Writers of small checkpoints, one function for each library: it is given a folder, and returns the one it made."""
