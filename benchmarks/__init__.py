"""What `make bench` runs, and what writes docs/benchmarks.md; see `python -m benchmarks --help`."""
