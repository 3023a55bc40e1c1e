"""The record of an averaging as data: manifest, fingerprints, checksums, schemas, equal for equal runs; signatures.

May import planning and what is below it.
"""
