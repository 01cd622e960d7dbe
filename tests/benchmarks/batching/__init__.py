"""What continuous batching gives and costs, against the same network offline, on this machine."""
