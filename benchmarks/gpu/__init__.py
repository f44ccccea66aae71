"""The kit for one run on a bare machine with GPUs: pack here, unpack and measure there."""
