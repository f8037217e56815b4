"""What both ends of the gRPC calls share: servers, channels, errors, who is calling."""
