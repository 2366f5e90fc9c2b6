"""Public reports of the area: chat templates."""
