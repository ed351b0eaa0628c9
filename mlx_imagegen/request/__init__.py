"""What the user asks for, resolved and checked before anything is loaded."""
