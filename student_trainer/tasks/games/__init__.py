"""What text games are played with: a file for each package of games, which alone imports it."""
