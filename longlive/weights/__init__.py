"""From weights files to networks: checked, and loaded without running code from the file."""
