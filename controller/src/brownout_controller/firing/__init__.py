"""What is due when, and who fires it: each due time ends as fired, skipped or missed, once, whoever dies."""
