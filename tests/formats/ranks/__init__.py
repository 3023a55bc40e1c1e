"""Models of which each rank saved its share: put together as torch itself puts them together."""
