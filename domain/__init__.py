"""What is true of dispatching predictions: no I/O, no clock, no randomness, standard library only."""
