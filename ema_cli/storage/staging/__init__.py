"""What is published as a whole or not at all: a private place for it, on a disk or for a store, of one run or shared.

May import store and storage's own modules below the places.
"""
