"""The version of this package, and those of SGLang and NIXL that it tells the user to install."""

VERSION = "0.1.0"

#: As pinned in setup.cfg, which a test compares.
SGLANG_VERSION = "0.5.23"
NIXL_VERSION = "1.5.1"
