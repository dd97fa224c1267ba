"""A local page on which people give preferences, and what their votes amount to."""
