"""Messages and stubs generated from protos/vlmir/v1; do not edit."""
