from hypothesis import settings

# Shared machines stall at times; a test is not wrong because it was slow once.
settings.register_profile("credit", deadline=None, max_examples=50)
settings.load_profile("credit")
