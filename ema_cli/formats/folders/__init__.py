"""Checkpoints that are folders: of Hugging Face, Diffusers and DeepSpeed, and of formats that are not read.

May import all other packages of formats.
"""
