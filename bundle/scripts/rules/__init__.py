"""Postprocessing that is learned from held-out predictions.

apply.py applies a file of rules, evidence.py reads what determine.py decides from.
"""

from .apply import ApplyPostprocessingd, apply_rules, load_rules
from .determine import determine

__all__ = ["ApplyPostprocessingd", "apply_rules", "determine", "load_rules"]
