"""The suites of `mmalign evaluate`: each reads questions, has them answered, and scores."""
