"""Safetensors files: strict headers, reading, writing.

May import formats' own modules and trainers.
"""
