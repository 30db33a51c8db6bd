"""Where the model is while it trains: whole on every process, or divided among them."""
