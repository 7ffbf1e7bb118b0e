"""How the outside is reached: one file, or folder, for each outside thing."""
