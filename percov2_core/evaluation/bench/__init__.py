"""How fast a codec is on this machine, box by box, and how well its large loop uses it."""
