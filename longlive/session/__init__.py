"""What a user makes: prompts, timelines and sessions as immutable values, and where they are kept."""
