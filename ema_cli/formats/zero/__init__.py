"""Models that DeepSpeed's ZeRO cut into partitions: the tables of its files, and tensors from pieces.

May import pieces, torch_save, trainers, pickles and formats' own modules.
"""
