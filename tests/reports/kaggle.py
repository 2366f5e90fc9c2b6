"""Public reports of the area: kaggle."""
