"""What is measured of a bundle, and on which pictures."""
