"""The Kubernetes manifests: rendered, validated, held to rules, deployed. Run ``python -m deploy.manifests``."""
