"""What every command shares: errors a user can mend, words of a command line, processes, and files written whole."""

from pathlib import Path

BUNDLE_ROOT = Path(__file__).resolve().parents[2]
