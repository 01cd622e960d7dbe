"""The training loop and all it stands on; it knows no stage."""
