"""One network trained, from the first step to its bundle."""
