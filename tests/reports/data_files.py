"""Public reports of the area: data files."""
