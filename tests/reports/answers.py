"""Public reports of the area: answers."""
