"""Tests of `formats.arrays`, named after its modules."""
