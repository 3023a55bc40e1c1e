"""The averages of a model that is training: the half of ema-cli that imports torch."""
