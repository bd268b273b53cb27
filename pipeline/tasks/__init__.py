"""What is learned: models, optimisers, what one step is, how it is validated."""
