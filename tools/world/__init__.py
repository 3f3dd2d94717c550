"""The pictures of the world that SmolBridge's connector is aligned on; none of them comes from MiniSQA's drawing code."""
