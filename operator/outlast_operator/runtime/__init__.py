"""What both runtimes share: observe, record, act, wake."""
