"""How the services are deployed: images, compose, Kubernetes, monitoring, and what holds them to the code."""
