"""Training of one network, from the first step to its bundle."""
