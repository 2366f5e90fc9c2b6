"""Read, clean and format the problems of a run."""
