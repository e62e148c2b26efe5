"""From predictions to accuracies with intervals. Pure (method section 8)."""
