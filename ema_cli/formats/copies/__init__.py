"""A checkpoint written over again: where its tensors lie in its files, and files with other bytes in their places.

May import every container of formats.
"""
