"""The two kinds of load, and the texts they send."""
