"""Networks of our own: EDM's U-Nets, and the small classifier that judges."""
