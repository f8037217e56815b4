"""What Samovar's services share: the contract, and everything two sides must agree on."""
