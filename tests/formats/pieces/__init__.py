"""Tests of tensors in pieces."""
