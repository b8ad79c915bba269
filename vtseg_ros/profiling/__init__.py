"""What networks cost: counted operations, measured times, and where the time of a frame goes."""
