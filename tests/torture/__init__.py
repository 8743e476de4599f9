"""A campaign that breaks the bundle's commands on purpose; ``python -m tests.torture`` says more."""
