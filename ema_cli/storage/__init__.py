"""Bytes: read by range, written once, published as a whole.

May import system, text and errors.
"""
