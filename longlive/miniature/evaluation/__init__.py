"""What the miniature shows of the method."""
