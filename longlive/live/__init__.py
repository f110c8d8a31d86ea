"""A video directed while it is made."""
