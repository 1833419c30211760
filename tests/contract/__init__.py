"""One suite of what `SandboxStore` promises, run against every store."""
