"""Measurements that are kept in a file, each made in a process of its own."""
