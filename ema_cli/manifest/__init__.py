"""What was done, as data that equal runs give equal bytes of: manifest, fingerprints, sums, schemas.

May import planning and what is below it.
"""
