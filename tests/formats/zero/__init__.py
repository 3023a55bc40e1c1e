"""Models that DeepSpeed's ZeRO cut: against what DeepSpeed's own scripts make of its files, and files made by hand."""
