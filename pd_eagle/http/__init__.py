"""Routes and protocols over the service."""
