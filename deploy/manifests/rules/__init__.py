"""Rules that the manifests are held to, by subject. Each takes all objects and yields what breaks it."""
