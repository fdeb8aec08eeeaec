"""The companion of "Why Transformers Need Adam": its models, data, experiments and claims."""
