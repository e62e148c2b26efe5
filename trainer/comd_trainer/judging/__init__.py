"""From two answers to a verdict: prompts, parser, scores, labels. Pure (method sections 4b and 5)."""
