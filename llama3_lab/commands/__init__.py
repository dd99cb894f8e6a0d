"""Sub-commands of `llama3-lab`, one module each: `add(commands)` defines it, and imports what it needs when it runs."""
