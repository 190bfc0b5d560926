"""What a run keeps of single responses for people to look at: losses row by row."""
