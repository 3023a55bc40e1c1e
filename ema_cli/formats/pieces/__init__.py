"""Tensors whose pieces lie in several files: the table of the pieces, and models that are put together by offsets.

May import safetensors, torch_save, trainers and formats' own modules.
"""
