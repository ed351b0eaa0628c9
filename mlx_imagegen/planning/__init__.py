"""What a run will take, from shapes alone, and whether this machine has it."""
