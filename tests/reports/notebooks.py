"""Public reports of the area: notebooks."""
