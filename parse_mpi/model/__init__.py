"""One agent's network from its own point of view: encoders, fission, heads, losses (torch)."""
