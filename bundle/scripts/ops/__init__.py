"""Operators: one package an operator, its plain specification and its faster forms side by side."""
