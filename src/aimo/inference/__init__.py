"""From a question to its voted answer: what a kernel ships. Imports nothing of aimo outside itself."""
