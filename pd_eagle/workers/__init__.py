"""Processes and their engines; they know no request's life and no HTTP."""
