"""The package itself: built, installed elsewhere, and used there."""
