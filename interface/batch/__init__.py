"""`model-dispatcher batch`: predictions for a file, through a running gateway."""
