"""The groups of measurements; each knows how it is run and how its tables are read."""
