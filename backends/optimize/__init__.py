"""From a PyTorch model to variants that the gateway serves: smaller and faster, and honest about what that costs."""
