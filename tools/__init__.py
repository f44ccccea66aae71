"""Programs that make what the package ships; never imported by it, never needed by users."""
