"""Programs around the runtime: each is importable as lutra.tools.<name>."""
