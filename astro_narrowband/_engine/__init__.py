"""The numeric core: arrays and frames only; private, and may change at any time."""
