"""Safetensors files: strict headers, tensors by range, layout of outputs.

May import trainers and formats' own modules.
"""
