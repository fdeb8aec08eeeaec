"""One module an experiment: its jobs, declared by parameters, and what is worked out of them."""
