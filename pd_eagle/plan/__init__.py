"""What the user asked for, what there is, and what will run; it knows no worker."""
