"""What is done for a request, and in which order; standard library only."""
