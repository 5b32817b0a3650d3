"""The mathematics of the noise: pure functions on tensors, torch only."""
