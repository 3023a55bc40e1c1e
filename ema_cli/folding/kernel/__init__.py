"""The arithmetic on blocks of tensors, behind one interface.

May import dtypes and errors.
"""
