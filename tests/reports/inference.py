"""Public reports of the area: inference."""
