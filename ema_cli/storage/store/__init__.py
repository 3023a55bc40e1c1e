"""Stores: clients and requests, what a bucket holds, objects that are read by range and sent in parts, claims.

May import names, info, source, lease and what writes files; no staging and no place.
"""
