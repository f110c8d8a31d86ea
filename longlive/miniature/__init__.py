"""A trained miniature of the model: a small world, its prompts, and 19 MB of weights that know it."""
