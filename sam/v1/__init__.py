"""Generated from `protos/sam/v1/` by `make proto`; not edited by hand."""
