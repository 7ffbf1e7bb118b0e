"""Where jobs come in that were accepted elsewhere."""
