"""Folders of torch.distributed.checkpoint.

May import formats' own modules, pickles and torch_save.
"""
