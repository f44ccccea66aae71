"""One request's life, from the gate to its last delta; it knows no HTTP."""
