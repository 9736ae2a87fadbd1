"""Each module measures one claim of the README, against a peer, in one run."""
