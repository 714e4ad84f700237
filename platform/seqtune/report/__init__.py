"""What a study shows while it runs and when it has ended, and what is said about models."""
