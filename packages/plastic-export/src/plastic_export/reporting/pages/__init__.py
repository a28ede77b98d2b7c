"""The pages of ``plastic report``, about training runs and about compressions."""
