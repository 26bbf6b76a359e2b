"""The agents of one rank: slice rows, parameter views, engines and optimisers."""
