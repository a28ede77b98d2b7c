"""The pictures of plans and of runs. They need the extra ``plots``: matplotlib."""
