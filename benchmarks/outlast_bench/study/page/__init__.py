"""The words, the tables and the page of a study."""
