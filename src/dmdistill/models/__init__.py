"""Teachers and students: where they are loaded from, and how they are saved."""
