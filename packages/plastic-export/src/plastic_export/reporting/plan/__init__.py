"""The output of ``plastic plan``: of a plan that was made, and of one that is foreseen."""
