"""The gateway: the documented HTTP routes, translated into gRPC calls and their answers back. It computes nothing."""
