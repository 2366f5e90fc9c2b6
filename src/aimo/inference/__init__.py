"""What a kernel ships: everything from a question to its voted answer. Imports nothing of aimo outside itself."""
