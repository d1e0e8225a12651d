"""One gateway process: it listens for clients itself and reaches replicas over the wire."""
