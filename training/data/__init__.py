"""What the stages train on."""
