"""Measured numbers as Markdown."""
