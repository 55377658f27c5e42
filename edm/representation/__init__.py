"""Codes of an image at several noise levels: what reads them, and what they hold."""
