"""Ways to spoil a good text; each is deterministic by the random stream it is given."""
