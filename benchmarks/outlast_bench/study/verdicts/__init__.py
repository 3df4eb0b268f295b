"""What a study's results say of each claim."""
