"""A trained miniature of the model: a small world, its prompts, and weights of some ten megabytes that know it."""
