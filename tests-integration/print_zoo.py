"""Print the zoo: what every command makes of every model type that mlx-lm has."""

from __future__ import annotations

from zoo.table import print_table

if __name__ == "__main__":
    print_table()
