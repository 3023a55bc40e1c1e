"""Checkpoints that are folders: Hugging Face, Diffusers, DeepSpeed, and those that are recognised and not read.

May import every other package of formats.
"""
