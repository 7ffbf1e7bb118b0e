"""Everything that is measured, started as its own process."""
