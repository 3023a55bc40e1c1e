"""Folders of torch.distributed.checkpoint: their metadata, the model in them, tensors from pieces.

May import torch_save, trainers, pickles and formats' own modules.
"""
