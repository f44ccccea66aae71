"""What is measured: one module a stage, each with `run(host, journal)`."""
