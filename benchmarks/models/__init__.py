"""Models that benchmarks time: random weights of the released geometry, and the peers that run them."""
