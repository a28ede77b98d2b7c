"""Adapters: what cutting one down costs and loses, beside what others do."""
