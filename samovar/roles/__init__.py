"""The services on their own, as sub-commands: the same as `python -m encoder_service` and so on."""
