"""What `scripts/bench.py` is made of: data sets, competitors, measurement, report. Nothing here is installed."""
