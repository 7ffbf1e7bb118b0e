"""How the dispatcher is reached."""
