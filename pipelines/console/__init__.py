"""What a command shares with its user: options, lines, progress, locks."""
