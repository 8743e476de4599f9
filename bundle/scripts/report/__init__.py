"""Parts of the report: which files belong together, their scores, the pictures and the page."""
