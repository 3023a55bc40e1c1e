"""The record of an averaging as data, with equal bytes for equal runs: manifest, fingerprints, checksums, schemas.

May import planning and what is below it.
"""
