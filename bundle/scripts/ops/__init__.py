"""Operators: packages that hold a plain specification and its faster forms side by side."""
