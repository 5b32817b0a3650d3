"""Drawing the noise and adding it: one operation, in blocks of plain torch or in a kernel."""
